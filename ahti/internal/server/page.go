package server

import (
	"encoding/base64"
	"encoding/json"
	"time"

	"github.com/yairfalse/tapio/ahti/internal/store"
)

// A page token says where to go on. It is opaque to clients and not secret; a
// wrong one gives a wrong page, or an error.

// timelinePage is what the token of a timeline holds, nanoseconds since the Unix
// epoch where it holds times.
type timelinePage struct {
	Since    int64 `json:"f"`
	Until    int64 `json:"t"`
	At       int64 `json:"a"`
	Sequence int64 `json:"s"`
}

func timelineToken(span store.Span, next store.Place) string {
	return token(timelinePage{span.Since.UnixNano(), span.Until.UnixNano(), next.At, next.Sequence})
}

func readTimelineToken(text string, span store.Span) (store.Span, error) {
	var page timelinePage
	if err := readToken(text, &page); err != nil {
		return span, err
	}
	span.Since, span.Until = time.Unix(0, page.Since), time.Unix(0, page.Until)
	span.After = store.Place{At: page.At, Sequence: page.Sequence}
	return span, nil
}

type incidentPage struct {
	StartedAt int64  `json:"a"`
	ID        string `json:"i"`
}

func incidentToken(next *store.IncidentPlace) string {
	return token(incidentPage{next.StartedAt, next.ID})
}

func readIncidentToken(text string) (*store.IncidentPlace, error) {
	var page incidentPage
	if err := readToken(text, &page); err != nil {
		return nil, err
	}
	return &store.IncidentPlace{StartedAt: page.StartedAt, ID: page.ID}, nil
}

func token(page any) string {
	text, err := json.Marshal(page)
	if err != nil {
		return "" // numbers and text can be encoded
	}
	return base64.RawURLEncoding.EncodeToString(text)
}

// maxToken is more than any token has, bytes.
const maxToken = 4 << 10

func readToken(token string, page any) error {
	if len(token) > maxToken {
		return bad("page_token has %d bytes: use next_page_token of the page before", len(token))
	}
	text, err := base64.RawURLEncoding.DecodeString(token)
	if err == nil {
		err = json.Unmarshal(text, page)
	}
	if err != nil {
		return bad("page_token is not one of this service: use next_page_token of the page before")
	}
	return nil
}
