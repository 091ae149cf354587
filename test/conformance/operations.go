package conformance

import "maps"

// operations gives all cases by operation id.
func operations() map[string]operation {
	all := map[string]operation{}
	for _, group := range []map[string]operation{vmOperations(), branchOperations(), commandOperations(), commitOperations(),
		repositoryOperations(), tagOperations(), publicOperations(), accountOperations(),
		keyOperations(), loginOperations(), domainOperations(), gatewayOperations(), deployOperations(), networkOperations(), imageOperations(), buildOperations()} {
		maps.Copy(all, group)
	}
	return all
}

// at gives one placeholder.
func at(name string, value func(w *world) string) func(w *world) map[string]string {
	return func(w *world) map[string]string { return map[string]string{name: value(w)} }
}

// fixed gives a body that depends on nothing.
func fixed(o object) func(*world, map[string]string) object {
	return func(*world, map[string]string) object { return maps.Clone(o) }
}

const unknownID = "00000000-0000-4000-8000-000000000000"

// noNames are names that break the rules of repositories and tags (spec/cli.md 3.2), whatever the limit.
var noNames = []string{"", "../x", "a/b", "a b", "a:b", "\x01", "\u0430pp", "app\n", "\u202eapp", "a%2fb"}
