// Package images holds the definitions of the root file system that vers makes by itself (internal/image), and of the
// supported images, which are made of it (internal/bake).
package images

import "embed"

// Definitions has one folder per root file system: packages (one Debian package a line, # begins a comment) and customize, a
// shell script that gets the root of the new system as $1 after the packages are installed.
//
//go:embed default
var Definitions embed.FS

// Supported has one folder per supported image: Dockerfile, vers.toml (the sizes of its machine), check (a script that
// proves, in a machine started from the image, that it is good) and the files that the Dockerfile copies. The script
// check beside them is for all.
//
//go:embed check node python rust go pi-agent cc-agent
var Supported embed.FS
