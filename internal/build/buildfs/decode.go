package buildfs

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// decoder fills a Script from a document, by the tags of its fields, and goes on after a fault.
type decoder struct {
	doc    *document
	report *Report
}

func (d *decoder) fault(path, format string, args ...any) {
	d.report.Faults = append(d.report.Faults, d.doc.problem(path, format, args...))
}

// custom decodes a type with more than one form in TOML.
type custom interface {
	fromTOML(d *decoder, path string, value any)
}

func (d *decoder) value(path string, value any, v reflect.Value, tag reflect.StructTag) {
	if c, ok := v.Addr().Interface().(custom); ok {
		c.fromTOML(d, path, value)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		target := reflect.New(v.Type().Elem())
		d.value(path, value, target.Elem(), tag)
		v.Set(target)
	case reflect.Struct:
		table, ok := value.(map[string]any)
		if !ok {
			d.wrongType(path, "a table", value)
			return
		}
		d.table(path, table, v)
	case reflect.Slice:
		d.list(path, value, v)
	case reflect.Map:
		d.stringMap(path, value, v)
	case reflect.String:
		d.text(path, value, v, tag)
	case reflect.Bool:
		if flag, ok := value.(bool); ok {
			v.SetBool(flag)
		} else {
			d.wrongType(path, "true or false", value)
		}
	case reflect.Int64:
		d.integer(path, value, v, tag)
	}
}

// table decodes a struct and names the keys that are unknown or missing.
func (d *decoder) table(path string, table map[string]any, v reflect.Value) {
	known := map[string]int{}
	for i := range v.NumField() {
		known[v.Type().Field(i).Tag.Get("toml")] = i
	}
	for key, value := range table {
		i, ok := known[key]
		if !ok {
			d.unknown(path, key, known)
			continue
		}
		d.value(below(path, key), value, v.Field(i), v.Type().Field(i).Tag)
	}
	for key, i := range known {
		if _, ok := table[key]; !ok && v.Type().Field(i).Tag.Get("required") == "true" {
			d.fault(path, "%s is missing", key)
		}
	}
}

func (d *decoder) unknown(path, key string, known map[string]int) {
	message := "unknown key"
	if near := nearest(key, known); near != "" {
		message += fmt.Sprintf("; did you mean %s?", near)
	}
	d.fault(below(path, key), "%s", message)
}

func (d *decoder) list(path string, value any, v reflect.Value) {
	items, ok := value.([]any)
	if !ok {
		if tables, isTables := value.([]map[string]any); isTables {
			for _, t := range tables {
				items = append(items, t)
			}
		} else {
			d.wrongType(path, "a list", value)
			return
		}
	}
	v.Set(reflect.MakeSlice(v.Type(), len(items), len(items)))
	for i, item := range items {
		d.value(element(path, i), item, v.Index(i), "")
	}
}

func (d *decoder) stringMap(path string, value any, v reflect.Value) {
	table, ok := value.(map[string]any)
	if !ok {
		d.wrongType(path, "a table of strings", value)
		return
	}
	result := map[string]string{}
	for key, item := range table {
		text, ok := item.(string)
		if !ok {
			d.wrongType(below(path, key), "a string", item)
			continue
		}
		result[key] = text
	}
	v.Set(reflect.ValueOf(result))
}

func (d *decoder) text(path string, value any, v reflect.Value, tag reflect.StructTag) {
	text, ok := value.(string)
	if !ok {
		d.wrongType(path, "a string", value)
		return
	}
	values := tag.Get("enum")
	if values == "" {
		v.SetString(text)
		return
	}
	for _, allowed := range strings.Split(values, ",") {
		if strings.EqualFold(allowed, text) {
			v.SetString(strings.ToLower(text))
			return
		}
	}
	d.fault(path, "%q is not one of %s", text, strings.ReplaceAll(values, ",", ", "))
}

func (d *decoder) integer(path string, value any, v reflect.Value, tag reflect.StructTag) {
	number, ok := value.(int64)
	if !ok {
		d.wrongType(path, "a whole number", value)
		return
	}
	if least, err := strconv.ParseInt(tag.Get("min"), 10, 64); err == nil && number < least {
		d.fault(path, "%d is too small: at least %d", number, least)
		return
	}
	if number > math.MaxUint32 {
		d.fault(path, "%d is too large: at most %d", number, uint32(math.MaxUint32))
		return
	}
	v.SetInt(number)
}

func (d *decoder) wrongType(path, want string, value any) {
	d.fault(path, "must be %s, not %s", want, typeName(value))
}

func typeName(value any) string {
	switch value.(type) {
	case string:
		return "a string"
	case bool:
		return "true or false"
	case int64:
		return "a whole number"
	case float64:
		return "a fraction"
	case []any:
		return "a list"
	case map[string]any:
		return "a table"
	}
	return "a date or time"
}

func (s *Size) fromTOML(d *decoder, path string, value any) {
	switch v := value.(type) {
	case int64:
		if v < 1 || v > math.MaxInt32 {
			d.fault(path, "%d is no size in MiB: 1 to %d, or \"auto\"", v, math.MaxInt32)
			return
		}
		*s = Size(v)
	case string:
		if !strings.EqualFold(v, "auto") {
			d.fault(path, "%q is no size in MiB: a number, or \"auto\"", v)
		}
	default:
		d.wrongType(path, "a number or \"auto\"", value)
	}
}

func (r *ImageRef) fromTOML(d *decoder, path string, value any) {
	switch v := value.(type) {
	case string:
		*r = parseImage(v)
		if r.Name == "" {
			d.fault(path, "%q names no image", v)
		}
	case map[string]any:
		type plain ImageRef // without this method
		d.table(path, v, reflect.ValueOf((*plain)(r)).Elem())
	default:
		d.wrongType(path, "a string or a table {name, tag}", value)
	}
}

// parseImage splits name:tag and name@digest. A colon before a slash is a port.
func parseImage(text string) ImageRef {
	name, digest, _ := strings.Cut(text, "@")
	r := ImageRef{Name: name, Digest: digest}
	if colon := strings.LastIndexByte(name, ':'); colon > strings.LastIndexByte(name, '/') {
		r.Name, r.Tag = name[:colon], name[colon+1:]
	}
	return r
}

func (l *Line) fromTOML(d *decoder, path string, value any) {
	switch v := value.(type) {
	case string:
		l.Shell = v
		if strings.TrimSpace(v) == "" {
			d.fault(path, "is empty")
		}
	case []any:
		d.list(path, v, reflect.ValueOf(&l.Args).Elem())
		if len(l.Args) == 0 || l.Args[0] == "" {
			d.fault(path, "names no program")
		}
	default:
		d.wrongType(path, "a string or a list of strings", value)
	}
}

func (m *Mode) fromTOML(d *decoder, path string, value any) {
	var bits int64
	switch v := value.(type) {
	case int64: // 0o755
		bits = v
	case string:
		n, err := strconv.ParseInt(strings.TrimPrefix(v, "0o"), 8, 64)
		if err != nil {
			d.fault(path, "%q is no mode: octal digits, such as \"0755\"", v)
			return
		}
		bits = n
	default:
		d.wrongType(path, "a string of octal digits, such as \"0755\"", value)
		return
	}
	if bits < 0 || bits > 0o7777 {
		d.fault(path, "%#o is no mode: at most 7777", bits)
		return
	}
	*m = Mode{bits, true}
}

// nearest is the known key that was probably meant, or "".
func nearest(key string, known map[string]int) string {
	names := make([]string, 0, len(known))
	for name := range known {
		names = append(names, name)
	}
	slices.Sort(names)
	best, distance := "", max(2, len(key)/3)+1
	key = strings.ToLower(strings.ReplaceAll(key, "-", "_"))
	for _, name := range names {
		if n := editDistance(key, name); n < distance {
			best, distance = name, n
		}
	}
	if best != "" {
		return best
	}
	for _, name := range names { // size for size_mib
		if len(key) > 2 && (strings.HasPrefix(name, key+"_") || strings.HasPrefix(key, name+"_")) {
			return name
		}
	}
	return ""
}

// editDistance is Levenshtein's.
func editDistance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return math.MaxInt32
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
