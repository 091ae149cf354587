// Package images holds the definitions of the root file systems that vers makes by itself. internal/image builds them.
package images

import "embed"

// Definitions has one folder per image: packages (one Debian package a line, # begins a comment) and customize, a
// shell script that gets the root of the new system as $1 after the packages are installed.
//
//go:embed default
var Definitions embed.FS
