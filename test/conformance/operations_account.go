package conformance

import (
	"strings"
)

func accountOperations() map[string]operation {
	vars := func(o object) func(*world, map[string]string) object { return fixed(object{"vars": o}) }
	return map[string]operation{
		"list-env-vars": {status: 200},
		"set-env-vars": {status: 200, body: vars(object{"GREETING": "hello"}), refused: []refusal{
			{why: "no name", body: vars(object{"1A": "x"}), status: 400, says: "1A"},
			{why: "a long name", body: vars(object{strings.Repeat("A", 257): "x"}), status: 400},
			{why: "a long value", body: vars(object{"A": strings.Repeat("x", 8193)}), status: 400},
			{why: "nothing said", body: fixed(object{}), status: 400},
		}},
		"delete-env-var": {status: 204, path: at("key", func(w *world) string {
			w.do("PUT", "/env_vars", object{"vars": object{"TO_DELETE": "x"}})
			return "TO_DELETE"
		})},
		"validate-key":   {status: 200},
		"whoami":         {status: 200},
		"system-version": {status: 200},
		"health":         {status: 200},
	}
}
