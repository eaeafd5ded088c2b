// Package event is the domain around polku.event.v1.Event: which kinds of event
// exist, what each must carry, what its metadata keys mean, and how an event is
// made, checked and printed. It adds no second event type.
package event

//go:generate go run ./internal/gendocs ../../docs/events.md
