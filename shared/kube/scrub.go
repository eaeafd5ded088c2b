package kube

import (
	"regexp"
	"strings"
	"unicode/utf8"
)

// What secrets look like in a text.
var (
	pemBlock = regexp.MustCompile(`(?s)-----BEGIN [A-Z0-9 ]*-----.*?(-----END [A-Z0-9 ]*-----|$)`)
	userInfo = regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*:/{1,2})[^\s"'<>]*@`)
	bearer   = regexp.MustCompile(`(?i)\b(bearer|basic)[\s:]+([A-Za-z0-9._~+/=-]{6,})`)
	assigned = regexp.MustCompile(`(?i)([\w.-]*(?:(?:passw|passphrase|pwd|secret|token|api[_-]?key|(?:access|account|private|shared|signing|encryption)[_-]?key|credential|signature)[\w.-]*|pass|"auth|[?&]sig)\\?["']?\s*(?:=>|[:=])\s*)(\\"[^"]*"?|"(?:[^"\\]|\\.)*"?|'[^']*'?|\S*[^\s,;&])`)
	// A scheme and what follows it, and all cookies.
	headers = regexp.MustCompile(`(?i)([\w.-]*(?:authorization\\?["']?\s*[:=]\s*)\\?["']?)[^\s"']+(?: +[^\s"']+)?|([\w.-]*cookie\\?["']?\s*[:=]\s*\\?["']?)[^"'\r\n]+`)
	// The way of Go's MySQL driver, and of SQL.
	inSQL   = regexp.MustCompile(`(?i)([^\s:/"'=]+:)[^\s"']+(@(?:tcp6?|udp|unix)\()|(\bidentified by\s+)\S+`)
	flagged = regexp.MustCompile(`(?i)(--?[\w-]*(?:passw|pwd|secret|token|api-?key)[\w-]*\s+)("[^"]*"?|'[^']*'?|[^\s,;]+)`)
	// What programs take passwords by: mysql -pPASSWORD, curl -u USER:PASSWORD.
	byProgram = regexp.MustCompile(`(\b(?:mysql|mariadb)[\w-]*\s(?:[^|;&\n]*?\s)?-p|\b(?:sshpass|redis-cli|valkey-cli)\s(?:[^|;&\n]*?\s)?-[ap]\s*|\blogin\s(?:[^|;&\n]*?\s)?-p\s+|(?:^|\s)(?:-u\s*|--user[ =])[^\s:]+:)\S+`)
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
	if strings.Contains(text, "@") && strings.Contains(text, "(") || spaced && strings.Contains(strings.ToLower(text), "identified by") {
		text = inSQL.ReplaceAllString(text, "${1}${3}"+Redacted+"${2}")
	}
	if spaced || assigns {
		lower := strings.ToLower(text)
		if assigns && containsAny(lower, "authorization", "cookie") {
			text = headers.ReplaceAllString(text, "${1}${2}"+Redacted)
		}
		if containsAny(lower, "bearer", "basic") {
			text = bearer.ReplaceAllStringFunc(text, scrubBearer)
		}
		if containsAny(lower, "pass", "pwd", "secret", "token", "key", "credential", "auth", "sig") {
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
