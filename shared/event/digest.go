package event

// DigestPrefix begins what stands for a value that stays in the cluster, such as that
// of an environment variable: two of them differ when the values do, and tell nothing
// else.
const DigestPrefix = "digest:"
