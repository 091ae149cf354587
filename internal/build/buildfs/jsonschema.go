package buildfs

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strconv"
	"strings"
)

// JSONSchema describes build scripts to editors (draft 7, which all of them know). It is made from the same types and
// tags as the parser.
func JSONSchema() []byte {
	schema := structSchema(reflect.TypeFor[Script]())
	schema["$schema"] = "http://json-schema.org/draft-07/schema#"
	schema["title"] = "Build script of vers rootfs"
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(schema); err != nil {
		panic(err) // maps of strings, numbers and maps
	}
	return b.Bytes()
}

func structSchema(t reflect.Type) map[string]any {
	properties, required := map[string]any{}, []string{}
	for i := range t.NumField() {
		f := t.Field(i)
		name := f.Tag.Get("toml")
		properties[name] = fieldSchema(f)
		if f.Tag.Get("required") == "true" {
			required = append(required, name)
		}
	}
	schema := map[string]any{"type": "object", "properties": properties, "additionalProperties": false}
	if len(required) > 0 {
		schema["required"] = required
	}
	return schema
}

func fieldSchema(f reflect.StructField) map[string]any {
	schema := typeSchema(f.Type)
	schema["description"] = f.Tag.Get("doc")
	if values := f.Tag.Get("enum"); values != "" {
		schema["enum"] = bothCases(strings.Split(values, ","))
	}
	if least, err := strconv.Atoi(f.Tag.Get("min")); err == nil {
		schema["minimum"] = least
	}
	if value, ok := f.Tag.Lookup("default"); ok {
		schema["default"] = typed(value)
	}
	return schema
}

// bothCases lists values as buildfs writes them and in lower case; editors compare exactly.
func bothCases(values []string) []string {
	all := append([]string{}, values...)
	for _, v := range values {
		if lower := strings.ToLower(v); lower != v {
			all = append(all, lower)
		}
	}
	return all
}

func typed(value string) any {
	if n, err := strconv.Atoi(value); err == nil {
		return n
	}
	if b, err := strconv.ParseBool(value); err == nil {
		return b
	}
	return value
}

func typeSchema(t reflect.Type) map[string]any {
	text := func() map[string]any { return map[string]any{"type": "string"} }
	either := func(forms ...map[string]any) map[string]any { return map[string]any{"anyOf": forms} }
	switch t {
	case reflect.TypeFor[Size]():
		return either(map[string]any{"type": "integer", "minimum": 1}, map[string]any{"const": "auto"})
	case reflect.TypeFor[Line]():
		return either(text(), map[string]any{"type": "array", "items": text(), "minItems": 1})
	case reflect.TypeFor[Mode]():
		return either(map[string]any{"type": "string", "pattern": "^(0o)?[0-7]{1,5}$"}, map[string]any{"type": "integer", "minimum": 0, "maximum": 0o7777})
	case reflect.TypeFor[ImageRef]():
		return either(text(), structSchema(t))
	}
	switch t.Kind() {
	case reflect.Pointer:
		return typeSchema(t.Elem())
	case reflect.Struct:
		return structSchema(t)
	case reflect.Slice:
		return map[string]any{"type": "array", "items": typeSchema(t.Elem())}
	case reflect.Map:
		return map[string]any{"type": "object", "additionalProperties": text()}
	case reflect.Bool:
		return map[string]any{"type": "boolean"}
	case reflect.Int64:
		return map[string]any{"type": "integer"}
	}
	return text()
}
