package humanoutput

// Output is the form in which a program writes events to standard output.
type Output string

// The outputs.
const (
	Text Output = "text" // a line for people
	JSON Output = "json" // a line of protojson
	None Output = "none"
)
