// Package buildfs turns a TOML build script into a root file system (spec/buildfs.md). A script names a container image,
// commands to run in it, files to lay over it, and what of it to keep; it comes alone or in a package with the files it
// refers to. [Open] finds out which kind of package a path is, [Package.Check] names everything that is wrong with it,
// [Build] makes the image with an engine.Engine and package rootfs. docs/buildfs.md is for users.
package buildfs
