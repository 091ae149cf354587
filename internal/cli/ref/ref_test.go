package ref

import (
	"strings"
	"testing"
)

const full = "2b4a1c2d-1111-4222-8333-0123456789ab"

func TestPrefix(t *testing.T) {
	tests := []struct {
		typed, want string
		ok          bool
	}{
		{"2b4a", "2b4a", true}, {"2B4A", "2b4a", true}, {"vm-2b4a", "2b4a", true}, {"VM-2B4A", "2b4a", true},
		{full, full, true}, {"vm-" + strings.ToUpper(full), full, true}, {"2b4a1c2d-", "2b4a1c2d-", true},
		{"2b4a1c2d-1111-4", "2b4a1c2d-1111-4", true},
		{"2b4", "", false}, {"", "", false}, {"vm-", "", false}, {"2b4a-1c", "", false}, {"2b4a1c2d1", "", false},
		{"dev", "", false}, {"2b4x", "", false}, {full + "0", "", false}, {"2b4é", "", false},
	}
	for _, test := range tests {
		got, ok := Prefix(test.typed)
		if ok != test.ok || ok && got != test.want {
			t.Errorf("Prefix(%q) = %q, %v; want %q, %v", test.typed, got, ok, test.want, test.ok)
		}
	}
}

func TestParseReference(t *testing.T) {
	for _, good := range []string{"my-app:latest", "a:b", "A.b_c-1:v1.0", strings.Repeat("r", 64) + ":" + strings.Repeat("t", 128)} {
		r, ok := ParseReference(good)
		if !ok || r.String() != good {
			t.Errorf("ParseReference(%q) = %v, %v", good, r, ok)
		}
	}
	for _, bad := range []string{
		"", ":", "a", "a:", ":b", "a:b:c", "a/b:c", "a b:c", "a@b:c", "a:b#", "ä:b", "..:b", "a:.", full,
		strings.Repeat("r", 65) + ":t", "r:" + strings.Repeat("t", 129), "a:b\n",
	} {
		if r, ok := ParseReference(bad); ok {
			t.Errorf("ParseReference(%q) = %v", bad, r)
		}
	}
	if !IsForeign("vers/python:latest") || IsForeign("python:latest") || IsForeign("a/b/c:d") || IsForeign("a/b:c:d") {
		t.Error("IsForeign")
	}
}

func TestMatch(t *testing.T) {
	ids := []string{full, "2b4a9999-1111-4222-8333-0123456789ab"}
	if got := Match("2b4a", ids); len(got) != 2 {
		t.Error(got)
	}
	if got := Match("2b4a1", ids); len(got) != 1 || got[0] != full {
		t.Error(got)
	}
}

func FuzzRef(f *testing.F) {
	for _, seed := range []string{full, "vm-2b4a", "my-app:latest", "vers/python:latest", "::", "vm-vm-", "é:é"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, typed string) {
		if r, ok := ParseReference(typed); ok && r.String() != typed {
			t.Errorf("reference %q reads as %q", typed, r)
		}
		if id, ok := ID(typed); ok {
			if p, isPrefix := Prefix(typed); !isPrefix || p != id {
				t.Errorf("id %q is the prefix %q, %v", id, p, isPrefix)
			}
		}
		if p, ok := Prefix(typed); ok {
			if again, ok := Prefix(p); !ok || again != p {
				t.Errorf("prefix %q is not stable: %q", p, again)
			}
			if _, isRef := ParseReference(typed); isRef {
				t.Errorf("%q is both a prefix and a reference", typed)
			}
		}
	})
}
