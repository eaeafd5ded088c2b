package kube

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/yairfalse/tapio/shared/event"
)

const (
	// MaxText is the most that is told of a message, bytes. The kubelet keeps as
	// much of what a container says at its end.
	MaxText = 4 << 10
	// MaxValue is the most that is told of any other value, bytes. Names end at
	// 253, image references far below.
	MaxValue = 1 << 10

	// maxScan is how much of a text is looked at, bytes: what is behind is cut.
	maxScan = 64 << 10
	// digestBytes is how much of a digest is told: 64 bits tell values apart, and
	// without the key nobody can try values.
	digestBytes = 8
	// maxNumber is how long a harmless number may be, bytes: the cards of banks
	// begin with 13.
	maxNumber = 12
	// maxLines is of how many lines a setting may be to be told line by line.
	maxLines = 200
)

// Redacted stands where a secret was found in a text.
const Redacted = "[redacted]"

// Redactor decides what of the values of objects may leave the cluster. What is
// not evidently harmless becomes a digest: that it changed is seen, what it is is
// not. It is safe for concurrent use.
type Redactor struct {
	key []byte
}

// NewRedactor returns a Redactor whose digests only those can check who have the
// key. Digests of one key can be compared; use at least 16 random bytes.
func NewRedactor(key []byte) *Redactor {
	return &Redactor{key: key}
}

// Digest returns what is told of a value that nobody may see: equal for equal
// values.
func (r *Redactor) Digest(value string) string {
	mac := hmac.New(sha256.New, r.key)
	mac.Write([]byte(value))
	var sum [sha256.Size]byte
	return event.DigestPrefix + hex.EncodeToString(mac.Sum(sum[:0])[:digestBytes])
}

// Blob returns what is told of a value that is long or binary.
func (r *Redactor) Blob(value string) string {
	return fmt.Sprintf("%s (%d bytes)", r.Digest(value), len(value))
}

// Value returns a value that is a name, a number or a word: what looks like a
// secret is taken out, what is too long is cut and told by a digest.
func (r *Redactor) Value(value string) string {
	value = scrub(value)
	if len(value) <= MaxValue {
		return value
	}
	return fmt.Sprintf("%s… %s (%d bytes)", beginning(value, MaxValue), r.Digest(value), len(value))
}

// Text returns a message without what looks like a secret, cut to MaxText.
func (r *Redactor) Text(text string) string {
	text = scrub(text)
	if len(text) <= MaxText {
		return text
	}
	const more = "…"
	return beginning(text, MaxText-len(more)) + more
}

// Setting returns the value of an environment variable, or of another setting
// with a name, when it is evidently harmless: a number, a duration, a quantity, a
// boolean, one of a few words, or, where the name promises one, an address.
// Otherwise it returns a digest.
func (r *Redactor) Setting(name, value string) string {
	switch {
	case value == "", isReference(value), isSwitch(value):
		return value
	case namesFile(name) && filePath.MatchString(value) && !isRandom(value, 16) && scrub(value) == value:
		return value
	case namesAddress(name):
		if address, ok := r.addresses(name, value); ok {
			return address
		}
		return r.Digest(value)
	case namesSecret(name) || !isPlain(value):
		return r.Digest(value)
	}
	return value
}

// Line is one line of a setting that holds several.
type Line struct{ Name, Value string }

// Lines reads a value of the form of a properties file and returns what is told of
// each of its lines; nil when it has another form.
func (r *Redactor) Lines(value string) []Line {
	if !strings.Contains(value, "\n") || strings.Count(value, "\n") > maxLines {
		return nil
	}
	var lines []Line
	seen := map[string]bool{}
	for text := range strings.Lines(value) {
		text = strings.TrimSpace(text)
		if text == "" || text[0] == '#' || text[0] == ';' || text[0] == '!' {
			continue
		}
		i := strings.IndexAny(text, "=:")
		if i < 0 {
			return nil
		}
		name := strings.TrimSpace(text[:i])
		if strings.HasSuffix(text, "=") && strings.ToLower(name) != name && strings.ToUpper(name) != name {
			return nil // the end of what is in base64, rather than an empty value
		}
		if !propertyName.MatchString(name) || scrub(name) != name || seen[name] {
			return nil
		}
		seen[name] = true
		lines = append(lines, Line{name, r.Setting(name, strings.TrimSpace(text[i+1:]))})
	}
	return lines
}

var propertyName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]{0,63}$`)

// Arguments returns a command line of which the program, the names of the flags
// and their harmless values are told. The program is the first word when program
// is set.
func (r *Redactor) Arguments(words []string, program bool) []string {
	told := make([]string, len(words))
	flag := ""
	for i, word := range words {
		switch {
		case i == 0 && program && programName.MatchString(word) && scrub(word) == word:
			told[i] = word
		case endsSecret.MatchString(flag):
			told[i] = r.Setting(flag, word) // which may begin with a dash
		case strings.HasPrefix(word, "-") && word != "-":
			told[i], flag = r.flag(word)
			continue
		case isReference(word):
			told[i] = word
		case flag != "":
			told[i] = r.flagValue(flag, word)
		default:
			told[i] = r.assignment(word)
		}
		flag = ""
	}
	return told
}

var (
	programName = regexp.MustCompile(`^[A-Za-z0-9_./-]{1,128}$`)
	longFlag    = regexp.MustCompile(`^--[A-Za-z][A-Za-z0-9_.-]{0,63}$`)
	goFlag      = regexp.MustCompile(`^-[a-z][a-z-]{0,39}$`)
	endsSecret  = regexp.MustCompile(`(?i)(pass|passwd|password|passphrase|pwd|secret|token|key)$`)
	shortFlag   = regexp.MustCompile(`^-[A-Za-z0-9]$`)
	heapFlag    = regexp.MustCompile(`^-X(mx|ms|ss|mn)[0-9]{1,12}[kKmMgGtT]?$`)
	variable    = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,63}$`)
)

// flag returns what is told of a flag, and its name when the next word may be its
// value.
func (r *Redactor) flag(word string) (told, name string) {
	name, value, assigned := strings.Cut(word, "=")
	known := longFlag.MatchString(name) || shortFlag.MatchString(name) || assigned && goFlag.MatchString(name)
	switch {
	case heapFlag.MatchString(word):
		return word, ""
	case !known || scrub(name) != name || isRandom(name, 16):
		// -pPASSWORD is a flag with its value.
		return r.Digest(word), "-"
	case assigned:
		return name + "=" + r.flagValue(name, value), ""
	}
	return name, name
}

// flagValue returns what is told of the value of a flag. A flag of one letter does
// not say what it is for: a port is told, a number that may be a password is not.
func (r *Redactor) flagValue(name, value string) string {
	const longest = len("65535")
	if shortFlag.MatchString(name) && len(value) > longest && !isReference(value) {
		return r.Digest(value)
	}
	return r.Setting(name, value)
}

// assignment returns what is told of a word that is no flag: nothing but the name
// when it sets a variable.
func (r *Redactor) assignment(word string) string {
	name, value, ok := strings.Cut(word, "=")
	if ok && variable.MatchString(name) && !isRandom(name, 16) {
		return name + "=" + r.Setting(name, value)
	}
	return r.Digest(word)
}

// Annotation returns what is told of an annotation; false when it is dropped
// altogether.
func (r *Redactor) Annotation(name, value string) (string, bool) {
	switch name {
	case "kubectl.kubernetes.io/last-applied-configuration", // the whole object again, with all its values
		"control-plane.alpha.kubernetes.io/leader": // renewed every two seconds
		return "", false
	}
	if isHarmlessAnnotation(name) && annotationValue.MatchString(value) && scrub(value) == value {
		return value, true
	}
	if value == "" {
		return "", true
	}
	return r.Digest(value), true
}

var annotationValue = regexp.MustCompile(`^[A-Za-z0-9._:/+-]{0,128}$`)

// isHarmlessAnnotation says whether an annotation is one that components of
// Kubernetes and well-known tools write, whose values are times, numbers, hashes
// and names.
func isHarmlessAnnotation(name string) bool {
	switch name {
	case "kubectl.kubernetes.io/restartedAt", "kubectl.kubernetes.io/default-container",
		"deployment.kubernetes.io/revision", "deployment.kubernetes.io/desired-replicas", "deployment.kubernetes.io/max-replicas",
		"deprecated.daemonset.template.generation",
		"kubernetes.io/config.hash", "kubernetes.io/config.mirror", "kubernetes.io/config.seen", "kubernetes.io/config.source",
		"kubernetes.io/ingress.class", "kubernetes.io/psp",
		"pv.kubernetes.io/bind-completed", "pv.kubernetes.io/bound-by-controller", "pv.kubernetes.io/provisioned-by",
		"volume.kubernetes.io/selected-node", "volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner",
		"volumes.kubernetes.io/controller-managed-attach-detach", "node.alpha.kubernetes.io/ttl",
		"endpoints.kubernetes.io/last-change-trigger-time", "batch.kubernetes.io/job-tracking", "batch.kubernetes.io/cronjob-scheduled-timestamp",
		"controller.kubernetes.io/pod-deletion-cost", "cluster-autoscaler.kubernetes.io/safe-to-evict",
		"meta.helm.sh/release-name", "meta.helm.sh/release-namespace",
		"prometheus.io/scrape", "prometheus.io/port", "sidecar.istio.io/inject", "linkerd.io/inject":
		return true
	}
	return false
}

// Label returns the value of a label, which is told unless its name says that it is
// a secret: labels are what objects find each other by.
func (r *Redactor) Label(name, value string) string {
	if value != "" && secretLabel.MatchString(name) {
		return r.Digest(value)
	}
	return r.Value(value)
}

var secretLabel = regexp.MustCompile(`(?i)(passw|passphrase|(^|[/._-])(pass|pwd)$|secret|token|credential|api[_-]?key)`)

// Path returns the path of a request, or an URL, without its query, which may carry
// a token.
func (r *Redactor) Path(path string) string {
	path, query, ok := strings.Cut(path, "?")
	if path = r.Value(path); ok {
		path += "?" + r.Digest(query)
	}
	return path
}

// isReference says whether a value is only the name of a variable: $(NAME).
func isReference(value string) bool {
	name, ok := strings.CutPrefix(value, "$(")
	return ok && strings.HasSuffix(name, ")") && variable.MatchString(name[:len(name)-1])
}

// namesSecret says whether a name suggests that its value is one.
func namesSecret(name string) bool {
	name = strings.ToLower(name)
	for _, word := range [...]string{
		"pass", "pwd", "secret", "token", "key", "cred", "auth", "private", "cert", "salt", "sign", "session", "cookie",
		"pin", "otp", "dsn", "jwt", "bearer", "hash", "seed", "code", "license", "account",
	} {
		if strings.Contains(name, word) {
			return true
		}
	}
	return false
}

// namesAddress says whether a name promises an address.
func namesAddress(name string) bool {
	name = strings.ToLower(name)
	for _, end := range [...]string{
		"addr", "address", "addresses", "host", "hosts", "hostname", "url", "urls", "uri", "uris", "endpoint", "endpoints", "server", "servers",
		"service", "port", "broker", "brokers", "upstream", "target", "listen", "bind",
	} {
		if strings.HasSuffix(name, end) {
			return true
		}
	}
	return false
}

// namesPort says whether a name promises a number, or an address that has one: a
// word alone is none.
func namesPort(name string) bool { return strings.HasSuffix(strings.ToLower(name), "port") }

// namesFile says whether a name promises the path of a file.
func namesFile(name string) bool {
	name = strings.ToLower(name)
	for _, end := range [...]string{"file", "dir", "directory", "path", "config", "kubeconfig", "conf", "certificate", "key"} {
		if strings.HasSuffix(name, end) {
			return true
		}
	}
	return false
}

var (
	filePath = regexp.MustCompile(`^/[a-z][a-z-]{1,31}/[A-Za-z0-9._/-]{1,200}$`)
	hostPort = regexp.MustCompile(`^(?:[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?|\[[0-9a-f:.]{2,45}\])?(:[0-9]{1,5})?$`)
	scheme   = regexp.MustCompile(`^[a-z][a-z0-9+.-]{0,15}://`)
)

// addresses returns one address or several with commas between, each without the
// name and password of a user, and without what follows the host: a path may be as
// secret as a password.
func (r *Redactor) addresses(name, value string) (string, bool) {
	if len(value) > MaxValue {
		return "", false
	}
	parts := strings.Split(value, ",")
	for i, part := range parts {
		rest := strings.TrimSpace(part)
		prefix := scheme.FindString(rest)
		rest = rest[len(prefix):]
		end := len(rest)
		if cut := strings.IndexAny(rest, "/?#"); cut >= 0 {
			end = cut
		}
		authority, hidden := rest[:end], strings.Trim(rest[end:], "/")
		if at := strings.LastIndexByte(rest, '@'); at >= 0 {
			// A password may hold a slash, so nothing before the last @ is told.
			if prefix == "" {
				return "", false
			}
			hidden = rest
			authority = rest[at+1:]
			if cut := strings.IndexAny(authority, "/?#"); cut >= 0 {
				authority = authority[:cut]
			}
		}
		port := hostPort.FindStringSubmatch(authority)
		if authority == "" || port == nil || isRandom(authority, 16) {
			return "", false
		}
		if prefix == "" && (hidden != "" || port[1] == "" && !isPlain(value) && (namesSecret(name) || namesPort(name))) {
			return "", false
		}
		parts[i] = prefix + authority
		if hidden != "" {
			parts[i] += "/" + r.Digest(hidden)
		}
	}
	return strings.Join(parts, ","), true
}

// isPlain says whether a value is one that no secret looks like.
func isPlain(value string) bool {
	if len(value) > 64 {
		return false
	}
	if _, err := strconv.ParseFloat(value, 64); err == nil {
		return len(value) <= maxNumber
	}
	if _, err := time.ParseDuration(value); err == nil {
		return true
	}
	if isWord(value) || quantity.MatchString(value) && isQuantity(value) {
		return true
	}
	if _, err := netip.ParseAddr(value); err == nil {
		return true
	}
	_, err := netip.ParsePrefix(value)
	return err == nil
}

// isSwitch says whether a value is one of two that a switch has.
func isSwitch(value string) bool {
	return value == "true" || value == "false"
}

// isWord says whether a value is one of the few words that settings have often.
func isWord(value string) bool {
	switch strings.ToLower(value) {
	case "true", "false", "yes", "no", "on", "off", "enabled", "disabled", "none", "null",
		"trace", "debug", "verbose", "info", "notice", "warn", "warning", "error", "critical", "fatal", "panic",
		"json", "text", "logfmt", "console", "production", "prod", "staging", "development", "dev", "test":
		return true
	}
	return false
}

// quantity is what resource.ParseQuantity may take; it costs less.
var quantity = regexp.MustCompile(`^[0-9]{1,15}(\.[0-9]{1,9})?([KMGTPE]i?|[numk])?B?$`)

func isQuantity(value string) bool {
	_, err := resource.ParseQuantity(strings.TrimSuffix(value, "B"))
	return err == nil
}

// Quantity returns a quantity in the one form that Kubernetes writes it; what is
// none is returned as a Value.
func (r *Redactor) Quantity(value string) string {
	if len(value) > 64 {
		return r.Value(value)
	}
	q, err := resource.ParseQuantity(value)
	if err != nil {
		return r.Value(value)
	}
	return q.String()
}

// What secrets look like in a text.
var (
	pemBlock = regexp.MustCompile(`(?s)-----BEGIN [A-Z0-9 ]*-----.*?(-----END [A-Z0-9 ]*-----|$)`)
	userInfo = regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*:/{1,2})[^\s"'<>]*@`)
	bearer   = regexp.MustCompile(`(?i)\b(bearer|basic)[\s:]+([A-Za-z0-9._~+/=-]{6,})`)
	assigned = regexp.MustCompile(`(?i)([\w.-]*(?:(?:passw|passphrase|pwd|secret|token|api[_-]?key|(?:access|account|private|shared|signing|encryption)[_-]?key|credential|authorization|cookie|signature)[\w.-]*|pass|[?&]sig)\\?["']?\s*(?:[:=]|=>)\s*)(\\?"[^"]*"?|'[^']*'?|\S*[^\s,;&])`)
	flagged  = regexp.MustCompile(`(?i)(--?[\w-]*(?:passw|pwd|secret|token|api-?key)[\w-]*\s+)("[^"]*"?|'[^']*'?|[^\s,;]+)`)
	// What programs take passwords by: mysql -pPASSWORD, curl -u USER:PASSWORD.
	byProgram = regexp.MustCompile(`(\b(?:mysql|mariadb)[\w-]*\s(?:[^|;&\n]*?\s)?-p|\b(?:sshpass|redis-cli|valkey-cli)\s(?:[^|;&\n]*?\s)?-[ap]\s*|(?:^|\s)(?:-u\s*|--user[ =])[^\s:]+:)\S+`)
	wellKnown = regexp.MustCompile(`\beyJ[\w-]{8,}(?:\.[\w-]*){1,4}|\b(?:AKIA|ASIA|AROA)[0-9A-Z]{12,}|\bgh[pousr]_\w{10,}|\bgithub_pat_\w{10,}|\bglpat-[\w-]{10,}|\bxox[a-z]-[\w-]{6,}|\bsk-(?:proj-|ant-|live-|test-)?\w{20,}|\b[srp]k_(?:live|test)_\w{8,}|\bAIza[\w-]{20,}|\bnpm_\w{20,}|\bhvs\.[\w-]{16,}|\bSG\.[\w-]{10,}\.[\w-]{10,}`)
	longWord  = regexp.MustCompile(`[A-Za-z0-9+/_=-]{32,}`)
)

// scrub takes what looks like a secret out of a text. The text comes back as
// valid UTF-8.
//
// Most values are short names, and looking for patterns is dear: each is looked for
// only where a part of it is.
func scrub(text string) string {
	text = beginning(text, maxScan)
	spaced, assigns := strings.Contains(text, " "), strings.ContainsAny(text, "=:")
	if strings.Contains(text, "-----BEGIN") {
		text = pemBlock.ReplaceAllString(text, Redacted)
	}
	if strings.Contains(text, "@") {
		text = userInfo.ReplaceAllString(text, "${1}"+Redacted+"@")
	}
	if spaced || assigns {
		lower := strings.ToLower(text)
		if containsAny(lower, "bearer", "basic") {
			text = bearer.ReplaceAllStringFunc(text, scrubBearer)
		}
		if containsAny(lower, "pass", "pwd", "secret", "token", "key", "credential", "authorization", "cookie", "sig") {
			if assigns {
				text = assigned.ReplaceAllString(text, "${1}"+Redacted)
			}
			if spaced {
				text = flagged.ReplaceAllString(text, "${1}"+Redacted)
			}
		}
		if spaced && containsAny(text, " -p", " -a", " -u", " --user") {
			text = byProgram.ReplaceAllString(text, "${1}"+Redacted)
		}
	}
	if containsAny(text, "eyJ", "AKIA", "ASIA", "AROA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "xox",
		"sk-", "sk_", "rk_", "pk_", "AIza", "npm_", "hvs.", "SG.") {
		text = wellKnown.ReplaceAllString(text, Redacted)
	}
	if hasLongWord(text) {
		text = longWord.ReplaceAllStringFunc(text, scrubWord)
	}
	return text
}

func containsAny(text string, parts ...string) bool {
	for _, part := range parts {
		if strings.Contains(text, part) {
			return true
		}
	}
	return false
}

func scrubBearer(match string) string {
	m := bearer.FindStringSubmatch(match)
	// "Basic authentication failed" is a sentence.
	if !strings.EqualFold(m[1], "bearer") && !hasMixedClasses(m[2]) {
		return match
	}
	return m[1] + " " + Redacted
}

func scrubWord(word string) string {
	if isRandom(word, longestWord) {
		return Redacted
	}
	return word
}

// longestWord is how long a word that looks random may be, bytes: names of pods end
// with ten such letters, keys and tokens are longer.
const longestWord = 32

// hasLongWord says whether longWord would find anything.
func hasLongWord(text string) bool {
	run := 0
	for i := range len(text) {
		switch c := text[i]; {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c >= 'A' && c <= 'Z', c == '-', c == '_', c == '+', c == '/', c == '=':
			if run++; run >= longestWord {
				return true
			}
		default:
			run = 0
		}
	}
	return false
}

// hasMixedClasses says whether a word is not one of a language: it has digits, or
// upper case behind its first letter.
func hasMixedClasses(word string) bool {
	return strings.ContainsAny(word, "0123456789+/=") || strings.ContainsFunc(word[1:], func(c rune) bool { return c >= 'A' && c <= 'Z' })
}

// isRandom says whether a word of at least so many bytes looks as if nobody had
// chosen it: it has lower and upper case and digits, which change all the time.
// Uids, hashes in hexadecimal and paths are told from it by that.
func isRandom(word string, shortest int) bool {
	if len(word) < shortest {
		return false
	}
	const lower, upper, digit = 1, 2, 4
	seen, changes, was := 0, 0, 0
	for i := range len(word) {
		class := 0
		switch c := word[i]; {
		case c >= 'a' && c <= 'z':
			class = lower
		case c >= 'A' && c <= 'Z':
			class = upper
		case c >= '0' && c <= '9':
			class = digit
		}
		if seen |= class; class != was {
			changes++
		}
		was = class
	}
	return seen == lower|upper|digit && changes*4 >= len(word)
}

// beginning returns at most so many bytes of a text, as valid UTF-8.
func beginning(text string, limit int) string {
	if len(text) > limit {
		text = text[:limit]
		for len(text) > 0 && !utf8.RuneStart(text[len(text)-1]) {
			text = text[:len(text)-1]
		}
		if r, size := utf8.DecodeLastRuneInString(text); r == utf8.RuneError && size == 1 {
			text = text[:len(text)-1]
		}
	}
	return strings.ToValidUTF8(text, "\uFFFD")
}
