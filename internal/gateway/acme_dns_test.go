package gateway

import (
	"strings"
	"testing"
)

func TestParseTSIG(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ text, wrong string }{
		{"key \"vers\" {\n\talgorithm hmac-sha256;\n\tsecret \"c2VjcmV0\";\n};\n", ""},
		{"key vers { algorithm HMAC-SHA256; secret c2VjcmV0; }", ""},
		{"", "not what tsig-keygen prints"},
		{"c2VjcmV0\n", "not what tsig-keygen prints"},
		{"key \"vers\" {\n\tsecret \"c2VjcmV0\";\n};\n", "not what tsig-keygen prints"},
		{"key \"a\" { algorithm hmac-sha256; secret \"c2VjcmV0\"; }; key \"b\" { algorithm hmac-sha256; secret \"c2VjcmV0\"; };", "not what tsig-keygen prints"},
		{"key \"vers\" { algorithm hmac-md5; secret \"c2VjcmV0\"; };", "hmac-md5"},
		{"key \"vers\" { algorithm hmac-sha256; secret \"c2VjcmV\"; };", "no base64"},
	} {
		key, err := parseTSIG(tt.text)
		if (err == nil) != (tt.wrong == "") || err != nil && !strings.Contains(err.Error(), tt.wrong) {
			t.Errorf("%q: %v, want %q", tt.text, err, tt.wrong)
		}
		if want := (tsig{name: "vers", algorithm: "hmac-sha256", secret: "c2VjcmV0"}); err == nil && key != want {
			t.Errorf("%q: %+v", tt.text, key)
		}
	}
}
