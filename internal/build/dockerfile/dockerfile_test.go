package dockerfile_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"vers/internal/build/dockerfile"
	"vers/internal/fault"
)

func parse(t *testing.T, text string) dockerfile.File {
	t.Helper()
	f, err := dockerfile.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// Everything that the language has, in one file.
const whole = `# syntax=docker/dockerfile:1
# escape=\
ARG BASE=scratch
# the base
FROM --platform=linux/amd64 ${BASE} AS Build
ARG VERSION=1.0 OTHER
ENV A=1 B="two words" C=$A\ b
ENV OLD form of it
RUN apt-get update && \
    # not part of it
    apt-get install -y \

    git
RUN ["/bin/echo", "exec form"]
run [ -d /x ] || mkdir /x
COPY --chown=app:app --chmod=755 a b* "c d" /srv/
COPY ["with space", "/to here/"]
ADD . .
WORKDIR /srv/$A
USER app
LABEL org.example.title="x y" v=1
EXPOSE 80 443/tcp
SHELL ["/bin/sh", "-ec"]
CMD ["a", "b"]
ENTRYPOINT exec a $A
RUN <<EOF
set -e
echo "$A"
EOF
RUN python3 - <<'PY' > /out
print(1 << 2)
PY
COPY <<one <<-"two" /etc/
$A
one
	$B
	two
MAINTAINER me <a@b>

FROM build
COPY --link --from=build /x /y
`

func TestParse(t *testing.T) {
	f := parse(t, whole)
	type instruction struct {
		Line         int
		Name, Script string
		Words        []string
		Pairs        []dockerfile.Pair
		Flags        []dockerfile.Pair
	}
	pair := func(name, value string) dockerfile.Pair { return dockerfile.Pair{Name: name, Value: value, Set: true} }
	want := []instruction{
		{6, "ARG", "", nil, []dockerfile.Pair{pair("VERSION", "1.0"), {Name: "OTHER"}}, nil},
		{7, "ENV", "", nil, []dockerfile.Pair{pair("A", "1"), pair("B", `"two words"`), pair("C", `$A\ b`)}, nil},
		{8, "ENV", "", nil, []dockerfile.Pair{pair("OLD", "form of it")}, nil},
		{9, "RUN", "apt-get update &&     apt-get install -y     git", nil, nil, nil},
		{14, "RUN", "", []string{"/bin/echo", "exec form"}, nil, nil},
		{15, "RUN", "[ -d /x ] || mkdir /x", nil, nil, nil},
		{16, "COPY", "", []string{"a", "b*", `"c d"`, "/srv/"}, nil, []dockerfile.Pair{pair("chown", "app:app"), pair("chmod", "755")}},
		{17, "COPY", "", []string{"with space", "/to here/"}, nil, nil},
		{18, "ADD", "", []string{".", "."}, nil, nil},
		{19, "WORKDIR", "", []string{"/srv/$A"}, nil, nil},
		{20, "USER", "", []string{"app"}, nil, nil},
		{21, "LABEL", "", nil, []dockerfile.Pair{pair("org.example.title", `"x y"`), pair("v", "1")}, nil},
		{22, "EXPOSE", "", []string{"80", "443/tcp"}, nil, nil},
		{23, "SHELL", "", []string{"/bin/sh", "-ec"}, nil, nil},
		{24, "CMD", "", []string{"a", "b"}, nil, nil},
		{25, "ENTRYPOINT", "exec a $A", nil, nil, nil},
		{26, "RUN", "set -e\necho \"$A\"\n", nil, nil, nil},
		{30, "RUN", "python3 - <<'PY' > /out\nprint(1 << 2)\nPY\n", nil, nil, nil},
		{33, "COPY", "", []string{"<<one", "<<two", "/etc/"}, nil, nil},
		{38, "LABEL", "", nil, []dockerfile.Pair{pair("maintainer", `"me <a@b>"`)}, nil},
	}
	var got []instruction
	for _, i := range f.Stages[0].Steps {
		got = append(got, instruction{i.Line, i.Name, i.Script, i.Words, i.Pairs, i.Flags})
	}
	if d := cmp.Diff(want, got, cmpopts.EquateEmpty()); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]dockerfile.Pair{pair("BASE", "scratch")}, f.Args); d != "" {
		t.Error(d)
	}
	first, second := f.Stages[0], f.Stages[1]
	if first.Name != "build" || first.Base != "${BASE}" || first.Line != 5 || second.Base != "build" || second.Name != "" || second.Line != 40 {
		t.Errorf("%+v %+v", first, second)
	}
	copied := second.Steps[0]
	if copied.Flag("from") != "build" || copied.Flag("link") != "true" || copied.Text != "COPY --link --from=build /x /y" {
		t.Errorf("%+v", copied)
	}
	documents := first.Steps[18].Files
	if d := cmp.Diff([]dockerfile.Heredoc{{Name: "one", Text: "$A\n", Expand: true}, {Name: "two", Text: "$B\n"}}, documents, cmpopts.IgnoreUnexported(dockerfile.Heredoc{})); d != "" {
		t.Error(d)
	}
	if len(f.Warnings) != 2 {
		t.Error(f.Warnings)
	}
	if i, ok := f.Stage("BUILD", 1); !ok || i != 0 {
		t.Errorf("%d %v", i, ok)
	}
	if _, ok := f.Stage("build", 0); ok {
		t.Error("a stage is found before it begins")
	}
}

// What is refused names its line and what to do.
func TestRefused(t *testing.T) {
	for text, want := range map[string]string{
		"":                         "no FROM",
		"# only\n":                 "no FROM",
		"RUN x":                    "line 1: RUN stands before the first FROM",
		"FROM":                     "line 1: FROM needs one base",
		"FROM a b":                 "FROM needs one base",
		"FROM a AS":                "FROM needs one base",
		"FROM a AS 1x":             `"1x" cannot be the name`,
		"FROM a AS scratch":        "cannot be the name",
		"FROM a AS x\nFROM b AS X": `line 2: a stage is called "x" already, in line 1`,
		"FROM --x=1 a":             "no flag --x=1",
		"FROM a\nRUM x":            `line 2: unknown instruction "RUM"`,
		"FROM a\nRNU x":            "did you mean RUN?",
		"FROM a\nRUN":              "RUN needs a command",
		"FROM a\n\nRUN []":         "line 3: RUN has an empty list",
		"FROM a\nRUN --mount=type=cache,target=x y": "no flag --mount here: steps run in a whole machine",
		"FROM a\nCOPY a":                              "at least one source and a target",
		"FROM a\nCOPY --parents a b":                  "no flag --parents here; it has --from, --chown, --chmod, --link",
		"FROM a\nCOPY --chown a b":                    "--chown needs a value",
		"FROM a\nADD --from=x a b":                    "no flag --from here",
		"FROM a\nADD https://example.org/x /":         "ADD from a URL is not possible: RUN curl",
		"FROM a\nADD git@example.org:a/b /":           "ADD from a URL",
		"FROM a\nVOLUME /x":                           "VOLUME is not possible: a machine has one disk",
		"FROM a\nHEALTHCHECK NONE":                    "HEALTHCHECK is not possible",
		"FROM a\nonbuild RUN x":                       "ONBUILD is not possible",
		"FROM a\nSTOPSIGNAL 9":                        "STOPSIGNAL is not possible",
		"FROM a\nENV":                                 "ENV needs NAME=value",
		"FROM a\nENV A":                               "ENV A has no value",
		"FROM a\nENV A=1 B":                           `"B" is not NAME=value`,
		"FROM a\nENV 1=x":                             `"1" cannot be the name of a variable`,
		"FROM a\nARG a-b":                             "cannot be the name of a build argument",
		"FROM a\nARG":                                 "ARG needs a name",
		"FROM a\nSHELL sh -c":                         "SHELL needs a list",
		"FROM a\nWORKDIR":                             "WORKDIR needs a value",
		"FROM a\nRUN <<EOF\nx\n":                      "line 2: the document <<EOF does not end",
		"FROM a\nRUN <<EOF\n\nEOF":                    "empty document",
		"FROM a\nCOPY x <<EOF\ny\nEOF":                "no target after its document",
		"FROM a\nCOPY --from=b <<EOF /y\ny\nEOF":      "cannot be copied --from",
		"# escape=x\nFROM a":                          "line 1: the escape character",
		"# escape=`\n# escape=`\nFROM a":              "line 2: the directive escape stands here twice",
		"FROM a\xff":                                  "no UTF-8",
		"FROM a\x00":                                  "no UTF-8",
		strings.Repeat("#", 2<<20):                    "at most",
		"FROM a\n" + strings.Repeat("USER a\n", 3000): "at most 2000",
	} {
		_, err := dockerfile.Parse([]byte(text))
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: want %q, got %v", text, want, err)
		}
	}
}

func TestEscapeDirective(t *testing.T) {
	f := parse(t, "# escape=`\r\nFROM a\r\nRUN x `\r\n  y\\\r\n")
	if got := f.Stages[0].Steps[0].Script; got != `x   y\` {
		t.Errorf("%q", got)
	}
	if f := parse(t, "\xef\xbb\xbfFROM a"); len(f.Stages) != 1 {
		t.Errorf("%+v", f)
	}
}

var vars = map[string]string{"A": "one", "EMPTY": "", "B": "two words", "Q": `"'`}

func lookup(name string) (string, bool) {
	value, ok := vars[name]
	return value, ok
}

func TestExpand(t *testing.T) {
	for text, want := range map[string]string{
		"": "", "plain": "plain", "$A": "one", "${A}x": "onex", "$Ax": "", "$A-$B": "one-two words", "'$A'": "$A", `"$A"`: "one",
		`\$A`: "$A", `"\$A \" \x"`: `$A " \x`, `a\ b`: "a b", "$": "$", "$1": "$1", "a$": "a$", `x\`: `x\`,
		"${A:-d}": "one", "${N:-d}": "d", "${EMPTY:-d}": "d", "${EMPTY-d}": "", "${N-d}": "d", "${A:+d}": "d", "${EMPTY:+d}": "", "${EMPTY+d}": "d", "${N+d}": "",
		"${N:-${M:-$A}}": "one", "${N:-'a}b'}": "a}b", `${N:-"x}y"}`: "x}y", "${A:?no}": "one", "$Q": `"'`, `"it's"`: "it's",
	} {
		if got, err := dockerfile.Expand(text, lookup); err != nil || got != want {
			t.Errorf("%q: %q, want %q (%v)", text, got, want, err)
		}
	}
	for text, want := range map[string]string{
		"${": "names no variable", "${}": "names no variable", "${A": "is not known", "${A:": "is not known", "${A:-x": "not closed",
		"'a": "not closed", `"a`: "not closed", "${A%x}": "${A%x} is not known", "${N?must be given}": "N is not set: must be given",
		strings.Repeat("${N:-", 30) + strings.Repeat("}", 30): "nested",
	} {
		if got, err := dockerfile.Expand(text, lookup); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %q, %v; want an error with %q", text, got, err, want)
		}
	}
	if got, err := dockerfile.ExpandText(`it's "$A" \$A \n`, lookup); err != nil || got != `it's "one" $A \n` {
		t.Errorf("%q %v", got, err)
	}
}

// Whatever is read is taken or refused with a kind, and what is taken can be run: lines are in order, names are known.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{whole, "FROM a", "FROM a\nRUN <<E\nE", "FROM a\nCOPY <<A <<B /\nA\nB", "# escape=`\nFROM a\nRUN a `\nb", "FROM a\nRUN [\"a\"", "FROM $A${B:-c}"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := dockerfile.Parse(data)
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Fatal(err)
			}
			return
		}
		last := 0
		for _, s := range file.Stages {
			if s.Line <= last || s.Base == "" {
				t.Fatalf("%+v", s)
			}
			last = s.Line
			for _, i := range s.Steps {
				if i.Line <= last || i.Name == "" || i.Text == "" || strings.Contains(i.Text, "\n") {
					t.Fatalf("%+v after line %d", i, last)
				}
				last = i.Line
				for _, w := range i.Words {
					_, _ = dockerfile.Expand(w, lookup)
				}
			}
		}
	})
}

func FuzzExpand(f *testing.F) {
	for _, seed := range []string{"$A", "${A:-${B:+c}}", `"a'\$b"`, "'", "${N:?x}"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := dockerfile.Expand(text, lookup)
		if err == nil && !strings.ContainsAny(text, `$"'\`) && got != text {
			t.Errorf("%q became %q", text, got)
		}
	})
}
