package image

// For tests in package image_test, which may use imagetest where tests in here could not.
var (
	NewCpioWriter = newCpioWriter
	ModuleDepends = moduleDepends
	ModuleName    = moduleName
	WithLock      = withLock
)
