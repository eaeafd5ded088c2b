package causality

import (
	"cmp"
	"container/heap"
	"iter"
	"math"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
)

// key names an entity.
type key struct {
	kind    ahtiv1.EntityType
	cluster string
	id      string
}

// stamped is a value with the time that it is from. The later value wins; of
// two at one time the greater, so that the order of arrival does not matter.
type stamped[T cmp.Ordered] struct {
	at    int64
	value T
}

// put takes a value over if it is newer, and says whether what is known
// changed.
func (s *stamped[T]) put(at int64, value T) bool {
	if at < s.at || at == s.at && value <= s.value {
		return false
	}
	changed := s.value != value
	s.at, s.value = at, value
	return changed
}

// vertex is an entity with what is known of it and what happened to it.
type vertex struct {
	key
	index      int32
	name       stamped[string]
	names      []string // all it ever had, as keys of graph.byName
	namespace  stamped[string]
	generation stamped[int64]
	reason     stamped[string]
	attributes map[string]stamped[string]
	labels     map[string]stamped[string]
	born       int64 // first heard of, or made if that is known and earlier
	heard      int64 // last heard of
	alive      int64 // last told to exist: to be mentioned is not enough
	gone       int64 // last told to be deleted; 0 when never

	ties    []tieGroup
	changes []*change
	runs    []*run
	// over holds when symptoms, by name, were told to be over, sorted.
	over map[string][]int64
	// touched is the engine's count when something about the vertex changed
	// that an explanation may rest on.
	touched uint64
}

// deleted says whether the entity is gone.
func (v *vertex) deleted() bool { return v.gone != 0 && v.gone >= v.alive }

// tie is a relationship between two vertices.
type tie struct {
	kind           ahtiv1.RelationshipType
	source, target *vertex
	since          int64 // earliest time that it was told to exist
	alive          int64 // last told to exist
	gone           int64 // last told to have ended; 0 when never
	forgotten      bool
}

// tieSame joins an entity that is known by its uid with the same one known by
// its name only. It exists in the graph and in no event.
const tieSame ahtiv1.RelationshipType = -1

// The ties that faults travel along.
const (
	owns     = ahtiv1.RelationshipType_RELATIONSHIP_TYPE_OWNS
	runsOn   = ahtiv1.RelationshipType_RELATIONSHIP_TYPE_SCHEDULED_ON
	mounts   = ahtiv1.RelationshipType_RELATIONSHIP_TYPE_MOUNTS
	uses     = ahtiv1.RelationshipType_RELATIONSHIP_TYPE_USES
	manages  = ahtiv1.RelationshipType_RELATIONSHIP_TYPE_MANAGES
	connects = ahtiv1.RelationshipType_RELATIONSHIP_TYPE_CONNECTS_TO
	exposes  = ahtiv1.RelationshipType_RELATIONSHIP_TYPE_EXPOSES
	depends  = ahtiv1.RelationshipType_RELATIONSHIP_TYPE_DEPENDS_ON
)

// tieGroup holds the ties of a vertex of one kind and direction.
type tieGroup struct {
	kind ahtiv1.RelationshipType
	out  bool
	ties []*tie
	top  []*tie // the newest, as of the last search; nil when ties changed
}

// newest returns the ties that a search follows: all, or the newest when there
// are too many.
func (g *tieGroup) newest() []*tie {
	if len(g.ties) <= maxFan {
		return g.ties
	}
	if g.top != nil {
		return g.top
	}
	sorted := slices.Clone(g.ties)
	slices.SortFunc(sorted, func(a, b *tie) int {
		return cmp.Or(cmp.Compare(b.since, a.since), compareKeys(a.source.key, b.source.key), compareKeys(a.target.key, b.target.key))
	})
	g.top = slices.Clone(sorted[:maxFan])
	return g.top
}

func (v *vertex) attach(t *tie, out bool) {
	for i := range v.ties {
		if g := &v.ties[i]; g.kind == t.kind && g.out == out {
			g.ties, g.top = append(g.ties, t), nil
			return
		}
	}
	v.ties = append(v.ties, tieGroup{kind: t.kind, out: out, ties: []*tie{t}})
}

// stale notes that a tie of the kind has another age than before.
func (v *vertex) stale(kind ahtiv1.RelationshipType) {
	for i := range v.ties {
		if v.ties[i].kind == kind {
			v.ties[i].top = nil
		}
	}
}

// other returns the far end.
func (t *tie) other(v *vertex) *vertex {
	if t.source == v {
		return t.target
	}
	return t.source
}

// same goes through what is known of the same thing under another id.
func (v *vertex) same() iter.Seq[*vertex] {
	return func(yield func(*vertex) bool) {
		for i := range v.ties {
			if v.ties[i].kind != tieSame {
				continue
			}
			for _, t := range v.ties[i].ties {
				if !yield(t.other(v)) {
					return
				}
			}
		}
	}
}

// tieKey names a tie.
type tieKey struct {
	kind           ahtiv1.RelationshipType
	source, target int32
}

// graph holds what is known of the entities. Each of its operations can be done
// in any order, and twice, with the same result.
type graph struct {
	vertices map[key]*vertex
	byIndex  []*vertex
	free     []int32              // places in byIndex
	byName   map[string][]*vertex // by name for people
	ties     map[tieKey]*tie
	nodes    map[string][]*vertex // nodes by cluster
	policies map[nsKey]*policies  // by namespace
	clusters map[string]bool
	clock    uint64
}

type nsKey struct{ cluster, namespace string }

// policies are the entities that govern a namespace.
type policies struct {
	list    []*vertex
	touched uint64 // the graph's clock when one came
}

func (g *graph) policiesOf(cluster, namespace string) *policies {
	k := nsKey{cluster, namespace}
	p := g.policies[k]
	if p == nil {
		p = &policies{}
		g.policies[k] = p
	}
	return p
}

// govern notes that a vertex governs a namespace.
func (g *graph) govern(v *vertex, namespace string) {
	p := g.policiesOf(v.cluster, namespace)
	p.list = append(p.list, v)
	g.clock++
	p.touched = g.clock
}

func newGraph() *graph {
	return &graph{
		vertices: map[key]*vertex{}, byName: map[string][]*vertex{}, ties: map[tieKey]*tie{},
		nodes: map[string][]*vertex{}, policies: map[nsKey]*policies{}, clusters: map[string]bool{},
	}
}

// touch notes that explanations that rest on v are out of date.
func (g *graph) touch(v *vertex) {
	g.clock++
	v.touched = g.clock
}

func (g *graph) vertex(k key) *vertex {
	v := g.vertices[k]
	if v == nil {
		k.id, k.cluster = strings.Clone(k.id), strings.Clone(k.cluster)
		v = &vertex{key: k, born: math.MaxInt64}
		g.vertices[k] = v
		g.place(v)
		g.clusters[k.cluster] = true
		switch k.kind {
		case ahtiv1.EntityType_ENTITY_TYPE_NODE:
			g.nodes[k.cluster] = append(g.nodes[k.cluster], v)
		case ahtiv1.EntityType_ENTITY_TYPE_NAMESPACE:
			g.govern(v, k.id) // its labels say what is admitted
		default:
		}
		g.touch(v)
	}
	return v
}

// place gives a vertex its index.
func (g *graph) place(v *vertex) {
	if n := len(g.free); n > 0 {
		v.index, g.free = g.free[n-1], g.free[:n-1]
		g.byIndex[v.index] = v
		return
	}
	v.index = int32(len(g.byIndex)) //nolint:gosec // two thousand million entities do not fit in memory
	g.byIndex = append(g.byIndex, v)
}

// isPolicy says whether entities of the type govern their whole namespace.
func isPolicy(t ahtiv1.EntityType) bool {
	switch t {
	case ahtiv1.EntityType_ENTITY_TYPE_RESOURCEQUOTA, ahtiv1.EntityType_ENTITY_TYPE_LIMITRANGE, ahtiv1.EntityType_ENTITY_TYPE_NETWORKPOLICY:
		return true
	default:
		return false
	}
}

// entity takes in what an event or the store says of an entity, and says
// whether anything of it was not known.
func (g *graph) entity(at int64, cluster string, e *ahtiv1.Entity) (*vertex, bool) {
	v := g.vertex(key{e.GetType(), cmp.Or(e.GetClusterId(), cluster), e.GetId()})
	born := min(at, madeAt(e))
	changed := born < v.born
	v.born, v.heard = min(v.born, born), max(v.heard, at)
	was := v.deleted()
	switch e.GetState() {
	case ahtiv1.EntityState_ENTITY_STATE_DELETED:
		gone := at
		if e.GetDeletedAt() != nil {
			gone = e.GetDeletedAt().AsTime().UnixNano()
		}
		changed = changed || gone > v.gone
		v.gone = max(v.gone, gone)
		changed = v.reason.put(gone, e.GetDeleteReason()) || changed
	case ahtiv1.EntityState_ENTITY_STATE_ACTIVE:
		changed = changed || v.alive == 0 // what is only named is forgotten sooner
		v.alive = max(v.alive, at)
	default:
	}
	changed = changed || was != v.deleted()
	if n := e.GetName(); n != "" {
		changed = v.name.put(at, n) || changed
		changed = g.called(v, e.GetNamespace(), n) || changed
	}
	if ns := e.GetNamespace(); ns != "" && v.namespace.put(at, ns) {
		changed = true
		if isPolicy(v.kind) {
			g.govern(v, ns)
		}
	}
	if e.GetGeneration() != 0 {
		changed = v.generation.put(at, e.GetGeneration()) || changed
	}
	changed = merge(&v.attributes, at, e.GetAttributes()) || changed
	changed = merge(&v.labels, at, e.GetLabels()) || changed
	if changed {
		g.touch(v)
	}
	return v, changed
}

// attributeCreated and attributeDeleting are the attributes that tell when an
// object was made, and when it is to be gone. A watcher that starts tells of what
// is there as if it were made just now.
const (
	attributeCreated  = "creation_timestamp"
	attributeDeleting = "deletion_timestamp"
)

// madeAt is when an entity says that it was made; the end of time when it does not.
func madeAt(e *ahtiv1.Entity) int64 {
	if text := e.GetAttributes()[attributeCreated]; text != "" {
		if at, err := time.Parse(time.RFC3339, text); err == nil {
			return at.UnixNano()
		}
	}
	return math.MaxInt64
}

func merge(into *map[string]stamped[string], at int64, from map[string]string) bool {
	changed := false
	for name, value := range from {
		s, there := (*into)[name]
		if there && s.value == value && s.at >= at {
			continue
		}
		if !there {
			if *into == nil {
				*into = make(map[string]stamped[string], len(from))
			}
			s.at = math.MinInt64
			changed = true
		}
		changed = s.put(at, value) || changed
		(*into)[name] = s
	}
	return changed
}

// called notes a name of an entity, and says whether it is a new one. An entity
// that is known by its uid is tied to its name, because others may know only
// that.
func (g *graph) called(v *vertex, namespace, name string) bool {
	fresh := !slices.Contains(v.names, name)
	if fresh {
		v.names = append(v.names, name)
		g.byName[name] = append(g.byName[name], v)
	}
	id := name
	switch v.kind {
	case ahtiv1.EntityType_ENTITY_TYPE_ENDPOINT, ahtiv1.EntityType_ENTITY_TYPE_NODE, ahtiv1.EntityType_ENTITY_TYPE_NAMESPACE,
		ahtiv1.EntityType_ENTITY_TYPE_CONTAINER, ahtiv1.EntityType_ENTITY_TYPE_SERVICE_UNIT:
		return fresh
	case ahtiv1.EntityType_ENTITY_TYPE_PV, ahtiv1.EntityType_ENTITY_TYPE_OBJECT:
	default:
		if namespace == "" {
			return fresh // half of a name may be anybody's
		}
	}
	if namespace != "" {
		id = namespace + "/" + name
	}
	if v.kind == ahtiv1.EntityType_ENTITY_TYPE_OBJECT {
		// The kind is a part of the id: a Rollout and a ServiceMonitor of one name
		// are two things.
		kind, _, there := strings.Cut(v.id, "/")
		if !there {
			return fresh
		}
		id = kind + "/" + id
	}
	if id == v.id {
		return fresh
	}
	named := g.vertex(key{v.kind, v.cluster, id})
	if _, created := g.tie(tieSame, v, named); created {
		g.touch(named)
		return true
	}
	return fresh
}

func (g *graph) tie(kind ahtiv1.RelationshipType, source, target *vertex) (*tie, bool) {
	k := tieKey{kind, source.index, target.index}
	t := g.ties[k]
	if t != nil {
		return t, false
	}
	t = &tie{kind: kind, source: source, target: target, since: math.MaxInt64}
	g.ties[k] = t
	source.attach(t, true)
	target.attach(t, false)
	return t, true
}

// relationship takes in a tie, and says whether anything of it was not known.
func (g *graph) relationship(at int64, cluster string, r *ahtiv1.Relationship) bool {
	earlier := false
	end := func(ref *ahtiv1.EntityReference) *vertex {
		v := g.vertex(key{ref.GetType(), cmp.Or(ref.GetClusterId(), cluster), ref.GetId()})
		earlier = earlier || at < v.born
		v.born = min(v.born, at)
		return v
	}
	source, target := end(r.GetSource()), end(r.GetTarget())
	if source == target {
		return false // says nothing
	}
	t, changed := g.tie(r.GetType(), source, target)
	changed = changed || earlier
	if r.GetState() == ahtiv1.EntityState_ENTITY_STATE_DELETED {
		gone := at
		if r.GetDeletedAt() != nil {
			gone = r.GetDeletedAt().AsTime().UnixNano()
		}
		changed = changed || gone > t.gone
		t.gone = max(t.gone, gone)
		t.since = min(t.since, gone)
	} else {
		since := at
		if r.GetCreatedAt() != nil {
			since = r.GetCreatedAt().AsTime().UnixNano()
		}
		was := t.gone != 0 && t.gone >= t.alive
		changed = changed || since < t.since
		t.since = min(t.since, since)
		t.alive = max(t.alive, at)
		changed = changed || was != (t.gone != 0 && t.gone >= t.alive)
	}
	if changed {
		source.stale(t.kind)
		target.stale(t.kind)
		g.touch(source)
		g.touch(target)
	}
	return changed
}

// holds says whether the tie was there at a time, or had been until a while
// before: what was cut off just now may be the reason of what shows now.
func (t *tie) holds(at int64) bool {
	if t.kind == tieSame {
		return !t.source.deleted() || t.source.gone >= at-int64(memory)
	}
	if t.gone != 0 && t.gone >= t.alive && t.gone < at-int64(memory) {
		return false
	}
	switch t.kind {
	case owns, runsOn:
		// These never change, so it does not matter when they were first told.
		return true
	default:
		return t.since <= at+int64(skew)
	}
}

// step is one way of getting from a vertex to the next in search of a cause.
type step struct {
	from Where
	kind ahtiv1.RelationshipType
	out  bool // along the tie; else against it
	to   Where
	cost float64
}

// steps lists all ways that a fault takes, seen from what suffers. The cost is a
// distance: 1 is a thing of its own that the sufferer depends on directly.
func steps() []step {
	return []step{
		{Self, owns, false, Owner, 0.25},
		{Self, owns, true, Owned, 0.25},
		{Self, runsOn, true, Node, 1},
		{Self, mounts, true, Config, 0.5},
		{Self, uses, true, Config, 0.5},
		{Self, manages, false, Owner, 0.5},
		{Self, manages, true, Owned, 0.5},
		{Self, connects, true, Callee, 1},
		{Self, depends, true, Callee, 1},
		{Self, exposes, true, Callee, 0.5},
		{Self, exposes, false, Service, 0.5},
		{Self, runsOn, false, Neighbor, 1.5},

		{Owned, owns, true, Owned, 0.25},
		{Owned, mounts, true, Config, 0.5},
		{Owned, uses, true, Config, 0.5},
		{Owned, runsOn, true, Node, 1},
		{Owned, connects, true, Callee, 1},

		{Owner, owns, false, Owner, 0.25},
		{Owner, manages, false, Owner, 0.5},
		{Owner, mounts, true, Config, 0.5},
		{Owner, uses, true, Config, 0.5},
		{Owner, runsOn, true, Node, 1},
		{Owner, exposes, false, Service, 0.5},

		{Node, runsOn, false, Neighbor, 1.5},

		{Callee, exposes, false, Callee, 0.25},
		{Callee, exposes, true, Callee, 0.5},
		{Callee, owns, false, Callee, 0.25},
		{Callee, owns, true, Callee, 0.25},
		{Callee, mounts, true, Callee, 0.75},
		{Callee, uses, true, Callee, 0.75},
		{Callee, manages, false, Callee, 0.5},
		{Callee, depends, true, Callee, 1},
		{Callee, runsOn, true, Callee, 1},
	}
}

// Bounds of the search for causes.
const (
	maxCost = 4.5
	// maxFan is how many ties of one kind and direction the search follows
	// from a vertex. A node has up to 110 pods by default.
	maxFan = 128
	// maxReach is how many places one search looks at.
	maxReach = 2048
)

// place is a vertex that the search reached.
type place struct {
	vertex *vertex
	where  Where
	cost   float64
	from   int // place before, -1 at the start
}

// search looks for what may have affected a vertex at a time.
type search struct {
	graph *graph
	start *vertex
	peer  *vertex // the only one to go to along CONNECTS_TO; nil for any
	at    int64
	steps []step
	want  map[Where]bool

	best     map[state]float64
	frontier places
	found    []place
	// governing are the policies that were looked at.
	governing []*policies
}

type state struct {
	vertex int32
	where  Where
}

// places is a heap, the nearest first.
type places []place

func (p places) Len() int           { return len(p) }
func (p places) Less(i, j int) bool { return nearer(&p[i], &p[j]) }
func (p places) Swap(i, j int)      { p[i], p[j] = p[j], p[i] }

// Push implements heap.Interface.
func (p *places) Push(x any) { *p = append(*p, x.(place)) } //nolint:errcheck,forcetypeassert // only push calls it

// Pop implements heap.Interface.
func (p *places) Pop() any {
	last := (*p)[len(*p)-1]
	*p = (*p)[:len(*p)-1]
	return last
}

// nearer orders places: by cost, then by what does not depend on the order of
// arrival.
func nearer(a, b *place) bool {
	return cmp.Or(
		cmp.Compare(a.cost, b.cost),
		cmp.Compare(a.where, b.where),
		compareKeys(a.vertex.key, b.vertex.key),
	) < 0
}

func compareKeys(a, b key) int {
	return cmp.Or(strings.Compare(a.id, b.id), cmp.Compare(a.kind, b.kind), strings.Compare(a.cluster, b.cluster))
}

// run returns the places, the nearest first and the start before all: the same
// in whatever order the graph was built.
func (s *search) run() []place {
	s.best = map[state]float64{{s.start.index, Self}: 0}
	s.frontier = places{{vertex: s.start, where: Self, from: -1}}
	for len(s.frontier) > 0 && len(s.found) < maxReach {
		p := heap.Pop(&s.frontier).(place) //nolint:errcheck,forcetypeassert // it holds places
		if s.best[state{p.vertex.index, p.where}] < p.cost {
			continue
		}
		s.found = append(s.found, p)
		s.follow(p, len(s.found)-1)
	}
	if s.want[Cluster] {
		nodes := slices.Clone(s.graph.nodes[s.start.cluster])
		slices.SortFunc(nodes, func(a, b *vertex) int { return strings.Compare(a.id, b.id) })
		for _, n := range nodes[:min(len(nodes), maxFan)] {
			if n != s.start {
				s.found = append(s.found, place{n, Cluster, 1.5, 0})
			}
		}
	}
	return s.found
}

func (s *search) push(v *vertex, where Where, cost float64, from int) {
	if v == s.start || cost > maxCost {
		return
	}
	at := state{v.index, where}
	if c, ok := s.best[at]; ok && c <= cost {
		return
	}
	s.best[at] = cost
	heap.Push(&s.frontier, place{v, where, cost, from})
}

// follow goes on from a place.
func (s *search) follow(p place, here int) {
	v := p.vertex
	for i := range v.ties {
		group := &v.ties[i]
		if group.kind == tieSame {
			for _, t := range group.newest() {
				if t.holds(s.at) {
					s.push(t.other(v), p.where, p.cost, here)
				}
			}
			continue
		}
		for _, st := range s.steps {
			if st.from != p.where || st.kind != group.kind || st.out != group.out || !s.allowed(v, st) {
				continue
			}
			for _, t := range group.newest() {
				to := t.other(v)
				if t.holds(s.at) && (s.peer == nil || st.kind != connects || p.where != Self || to == s.peer) {
					s.push(to, st.to, p.cost+st.cost, here)
				}
			}
		}
	}
	if p.where != Self && p.where != Owner && p.where != Callee {
		return
	}
	where := Namespace
	if p.where == Callee {
		where = Callee
	}
	if v.namespace.value == "" {
		return
	}
	governing := s.graph.policiesOf(v.cluster, v.namespace.value)
	if !slices.Contains(s.governing, governing) {
		s.governing = append(s.governing, governing)
	}
	for _, policy := range governing.list {
		s.push(policy, where, p.cost+1, here)
	}
}

// allowed leaves out what nobody asked for, and the way from an address to
// whatever else has it.
func (s *search) allowed(v *vertex, st step) bool {
	switch {
	case st.to == Neighbor || st.to == Service:
		return s.want[st.to]
	case st.kind == exposes && st.out:
		return v.kind == ahtiv1.EntityType_ENTITY_TYPE_SERVICE
	default:
		return true
	}
}

// view shows an entity as it is known.
func (v *vertex) view() *ahtiv1.Entity {
	e := &ahtiv1.Entity{
		Type: v.kind, Id: v.id, ClusterId: v.cluster, Name: v.displayName(), Namespace: v.namespace.value,
		Generation: v.generation.value, State: ahtiv1.EntityState_ENTITY_STATE_ACTIVE,
		Attributes: plain(v.attributes), Labels: plain(v.labels),
	}
	if v.deleted() {
		e.State = ahtiv1.EntityState_ENTITY_STATE_DELETED
		e.DeletedAt = timestamp(v.gone)
		e.DeleteReason = v.reason.value
	}
	return e
}

// displayName is the name, or the id of what has none.
func (v *vertex) displayName() string { return cmp.Or(v.name.value, v.id) }

func plain(m map[string]stamped[string]) map[string]string {
	if len(m) == 0 {
		return nil
	}
	out := make(map[string]string, len(m))
	for k, s := range m {
		out[k] = s.value
	}
	return out
}

func (t *tie) view() *ahtiv1.Relationship {
	r := &ahtiv1.Relationship{
		Type:   t.kind,
		Source: t.source.reference(), Target: t.target.reference(),
		State: ahtiv1.EntityState_ENTITY_STATE_ACTIVE, CreatedAt: timestamp(t.since),
	}
	if t.gone != 0 && t.gone >= t.alive {
		r.State = ahtiv1.EntityState_ENTITY_STATE_DELETED
		r.DeletedAt = timestamp(t.gone)
	}
	return r
}

func (v *vertex) reference() *ahtiv1.EntityReference {
	return &ahtiv1.EntityReference{Type: v.kind, Id: v.id, ClusterId: v.cluster}
}

func timestamp(ns int64) *timestamppb.Timestamp {
	return &timestamppb.Timestamp{Seconds: ns / 1e9, Nanos: int32(ns % 1e9)} //nolint:gosec // below 1e9
}

// faint says whether nobody ever told that the entity exists, and nobody has
// mentioned it since a time.
func (v *vertex) faint(limit int64) bool {
	return v.alive == 0 && v.heard < limit && (v.born < limit || v.born == math.MaxInt64)
}

// needed says whether something that is not faint cannot be told of without the
// entity: it mounts or uses it, or is the same.
func (v *vertex) needed(limit int64) bool {
	for _, g := range v.ties {
		needs := !g.out && (g.kind == mounts || g.kind == uses || g.kind == depends)
		if !needs && g.kind != tieSame {
			continue
		}
		if slices.ContainsFunc(g.ties, func(t *tie) bool { return !t.other(v).faint(limit) }) {
			return true
		}
	}
	return false
}

// forget drops what ended before a time, and what has not been heard of since
// and will tell of itself when it is there: containers, units, addresses, who
// connects to what, and what was only ever mentioned.
func (g *graph) forget(limit int64, keep map[*vertex]bool) {
	dead := func(v *vertex) bool {
		switch {
		case len(v.changes) > 0 || len(v.runs) > 0 || keep[v]:
			return false
		case v.deleted():
			return v.gone < limit
		case v.kind == ahtiv1.EntityType_ENTITY_TYPE_CONTAINER || v.kind == ahtiv1.EntityType_ENTITY_TYPE_SERVICE_UNIT:
			return max(v.heard, v.born) < limit
		default:
			return v.faint(limit) && !v.needed(limit)
		}
	}
	cut := map[*vertex]bool{}
	for k, t := range g.ties {
		ended := t.gone != 0 && t.gone >= t.alive && t.gone < limit || t.kind == connects && max(t.alive, t.since) < limit
		if ended && (!keep[t.source] || !keep[t.target]) || dead(t.source) || dead(t.target) {
			delete(g.ties, k)
			t.forgotten = true
			cut[t.source], cut[t.target] = true, true
		}
	}
	for v := range cut {
		v.prune()
		g.touch(v)
	}
	for k, v := range g.vertices {
		// An address that was told to exist, as that of a pod, is nothing alone.
		alone := v.kind == ahtiv1.EntityType_ENTITY_TYPE_ENDPOINT && len(v.ties) == 0 && max(v.heard, v.alive) < limit
		if dead(v) || alone && len(v.changes) == 0 && len(v.runs) == 0 && !keep[v] {
			g.drop(k, v)
		}
	}
}

// prune drops the ties that are forgotten.
func (v *vertex) prune() {
	for i := range v.ties {
		g := &v.ties[i]
		g.ties = slices.DeleteFunc(g.ties, func(t *tie) bool { return t.forgotten })
		g.top = nil
	}
	v.ties = slices.DeleteFunc(v.ties, func(g tieGroup) bool { return len(g.ties) == 0 })
}

func (g *graph) drop(k key, v *vertex) {
	delete(g.vertices, k)
	g.byIndex[v.index] = nil
	g.free = append(g.free, v.index)
	without := func(list []*vertex) []*vertex {
		return slices.DeleteFunc(list, func(o *vertex) bool { return o == v })
	}
	for _, name := range v.names {
		if g.byName[name] = without(g.byName[name]); len(g.byName[name]) == 0 {
			delete(g.byName, name)
		}
	}
	if v.kind == ahtiv1.EntityType_ENTITY_TYPE_NODE {
		g.nodes[v.cluster] = without(g.nodes[v.cluster])
	}
	if v.kind == ahtiv1.EntityType_ENTITY_TYPE_NAMESPACE {
		p := g.policiesOf(v.cluster, v.id)
		p.list = without(p.list)
	}
	if isPolicy(v.kind) {
		p := g.policiesOf(v.cluster, v.namespace.value)
		p.list = without(p.list)
	}
}
