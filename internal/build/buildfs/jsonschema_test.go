package buildfs

import (
	"bytes"
	"flag"
	"os"
	"reflect"
	"testing"
)

//go:generate go test -run ^TestJSONSchema$ . -update

var update = flag.Bool("update", false, "write docs/buildfs.schema.json")

// TestJSONSchema holds the file for editors to the types.
func TestJSONSchema(t *testing.T) {
	const path = "../../../docs/buildfs.schema.json"
	if *update {
		must(t, os.WriteFile(path, JSONSchema(), 0o644))
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, JSONSchema()) {
		t.Errorf("docs/buildfs.schema.json is not what the types say (%v); run: go generate ./internal/build/buildfs", err)
	}
}

// Every key has a name, a type that the decoder knows, and a description.
func TestSchemaTags(t *testing.T) {
	var walk func(path string, typ reflect.Type)
	walk = func(path string, typ reflect.Type) {
		for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice {
			typ = typ.Elem()
		}
		if typ.Kind() != reflect.Struct || typ == reflect.TypeFor[Line]() || typ == reflect.TypeFor[Mode]() {
			return
		}
		for i := range typ.NumField() {
			f := typ.Field(i)
			if f.Tag.Get("toml") == "" || f.Tag.Get("doc") == "" {
				t.Errorf("%s%s has no name or no description", path, f.Name)
			}
			walk(path+f.Name+".", f.Type)
		}
	}
	walk("", reflect.TypeFor[Script]())
}
