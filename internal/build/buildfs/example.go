package buildfs

import _ "embed"

// Example is a commented build script, as `vers rootfs init` writes it.
//
//go:embed example.toml
var Example string
