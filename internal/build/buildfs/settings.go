package buildfs

import (
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"vers/internal/fault"
)

// apply changes values of the document: "filesystem.size_mib=512". A value that is TOML is taken as that, another as a
// string. Elements of lists are named by their number: commands.0.name=first.
func (d *document) apply(settings []string) error {
	for _, setting := range settings {
		path, text, ok := strings.Cut(setting, "=")
		if !ok || path == "" {
			return fault.Invalidf("--set %s: want KEY=VALUE, such as filesystem.size_mib=512", setting)
		}
		keys := strings.Split(path, ".")
		if err := set(d.values, keys, settingValue(keys, text)); err != nil {
			return fault.Invalidf("--set %s: %w", setting, err)
		}
	}
	return nil
}

// settingValue reads the value; in a table of strings (env, volumes) everything is a string.
func settingValue(keys []string, text string) any {
	if len(keys) > 1 && (keys[len(keys)-2] == "env" || keys[len(keys)-2] == "volumes") {
		return text
	}
	var holder map[string]any
	if err := toml.Unmarshal([]byte("v = "+text), &holder); err != nil || len(holder) != 1 {
		return text
	}
	return holder["v"]
}

func set(table map[string]any, keys []string, value any) error {
	key := keys[0]
	if len(keys) == 1 {
		table[key] = value
		return nil
	}
	switch next := table[key].(type) {
	case nil:
		fresh := map[string]any{}
		table[key] = fresh
		return set(fresh, keys[1:], value)
	case map[string]any:
		return set(next, keys[1:], value)
	case []any:
		i, err := strconv.Atoi(keys[1])
		if err != nil || i < 0 || i >= len(next) {
			return fault.Invalidf("%s has %d elements, numbered from 0; there is no %s", key, len(next), keys[1])
		}
		if len(keys) == 2 {
			next[i] = value
			return nil
		}
		if inner, ok := next[i].(map[string]any); ok {
			return set(inner, keys[2:], value)
		}
	}
	return fault.Invalidf("%s is not a table", key)
}
