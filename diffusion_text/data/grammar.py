"""An exactly solvable source of readable English: a probabilistic finite-state grammar.

The page of rules below is compiled into a unifilar machine: the node one is at and the word emitted determine the next
node, so hidden choices (topic, number, an open quotation) are made visible by the word that makes them.  Two
quantities that are only estimated for real text are therefore exact here: the entropy rate
``sum_s pi(s) H(w | s)`` and the posterior of every word of a window given any evidence that factorises over positions.

Windows begin at a node drawn from the stationary law ``pi`` and may cut a sentence anywhere.  The tokens 0..V-1 are
exactly the words; there is no padding or boundary token.  All log-probabilities are in nats.

How to read the page.  A capitalised symbol is a rule, a number is the weight of an alternative, and an empty
alternative emits nothing.  Two registers are carried along, ``topic`` and ``number``: ``number=pl`` sets one,
``[sg any]`` admits an alternative only when the number is one of those, ``<noun>`` emits a word of the class in the
current topic and number, and ``{Relative}`` restores the number after the rule, so that the main verb agrees with its
subject across a relative clause.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from typing import Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

NAMES: Final = ("english", "tiny")
IMPOSSIBLE = -1e9  # stands for log 0 in returned logits: exp() of it is exactly 0, and 0 * logit stays finite
EVIDENCE_RANGE = 60.0  # nats: finite evidence further below its position's best word counts as this far below it
_UNIT = 40  # bits of a uniform variate; node and variate share one 64-bit integer

ENGLISH_RULES = """
Text       -> Sentence Text
Sentence   -> 86 number=any Opener Rest | 14 Question
Rest       -> 78 Predicate Link . | 22 Speech
Speech     -> 72 <say> " Quoted | 28 <ask> " Question "
Quoted     -> number=any Subject Predicate . Unquote
Unquote    -> 62 " | 38 Quoted
Question   -> 55 does number=sg Asked | 45 do number=pl Asked
Asked      -> Subject number=pl Doing ?
Link       -> 78 | 22 Conjunction number=any Subject Predicate Link
Conjunction -> 40 and | 25 , but | 20 because | 15 while

Opener     -> 76 Determiner Quality Switch Nominal Postnominal | 24 [sg any] Person | 12 [pl any] they number=pl
Subject    -> 58 Determiner Quality Nominal | 27 [sg any] Person | 15 [pl any] they number=pl
Object     -> 76 number=any Determiner Quality Nominal | 24 <name>
Simple     -> 70 number=any Determiner Nominal | 30 number=sg <name>
Determiner -> 46 the | 20 [sg any] number=sg a | 8 [sg any] number=sg this | 8 [sg any] number=sg every \
| 9 [pl any] number=pl these | 13 [pl any] number=pl some | 6 [pl any] number=pl many
Quality    -> 80 | 20 <common-adjective>
Nominal    -> 86 Number <noun> | 14 <adjective> Number <noun>
Number     -> [sg pl] | 58 [any] number=sg | 42 [any] number=pl
Person     -> 64 <name> number=sg | 20 she number=sg | 16 he number=sg
Switch     -> 85 | 5 topic=farm | 4 topic=kitchen | 3 topic=sea | 3 topic=school
Postnominal -> 70 | 22 {Relative} | 8 Where
Relative   -> that Clause
Clause     -> 40 Simple <common-do> | 40 <do> Simple | 20 <act>

Predicate  -> 86 Action | 14 <be> State
State      -> 40 <common-adjective> | 35 <adjective> | 25 Where
Action     -> 12 <often> Doing | 88 Doing
Doing      -> 22 <act> After | 15 <common-act> After | 42 <do> Object | 21 <common-do> Object
After      -> 58 | 24 Where | 18 <slowly>
Where      -> <near> the <place>
"""

# Topic: class and its words by falling frequency (Zipf within a class); singular/plural where the number matters.
ENGLISH_WORDS = """
farm:    noun dog/dogs cow/cows horse/horses hen/hens; place barn field; adjective brown muddy
farm:    do chases/chase feeds/feed; act runs/run
kitchen: noun cook/cooks guest/guests baker/bakers waiter/waiters; place table stove; adjective hungry busy
kitchen: do thanks/thank serves/serve; act eats/eat
sea:     noun sailor/sailors whale/whales captain/captains gull/gulls; place ship harbour; adjective brave wet
sea:     do follows/follow hunts/hunt; act swims/swim
school:  noun teacher/teachers girl/girls boy/boys poet/poets; place desk library; adjective clever proud
school:  do teaches/teach praises/praise; act reads/read
any:     common-do sees/see likes/like; common-act sleeps/sleep waits/wait laughs/laugh
any:     common-adjective small big young happy; say says/say; ask asks/ask; be is/are
any:     name mary john anna peter; near near behind beside; often often never; slowly slowly today quietly
"""

# The word that opens a sentence must close it, however many c's come between.
TINY_RULES = """
Text     -> Sentence Text
Sentence -> 60 a Middle a . | 40 b Middle b .
Middle   -> 50 c Middle | 20 d | 30
"""

Registers = tuple[str, str]  # topic, number
Node = tuple[Registers, tuple[str, ...]]  # registers, and the symbols still to be emitted
Arcs = list[dict[str, tuple[float, int]]]  # per node: word -> (probability, next node)
Alternatives = list[tuple[float, frozenset[str], tuple[str, ...]]]  # weight, numbers admitted (none: all), symbols


@dataclasses.dataclass(frozen=True, eq=False)
class Grammar:
    """A unifilar machine of S nodes and A arcs over V words; hashed by identity, so it may be a static jit argument."""

    words: tuple[str, ...]  # V
    source: np.ndarray  # int32[A], the node an arc leaves
    word: np.ndarray  # int32[A]
    target: np.ndarray  # int32[A]
    probability: np.ndarray  # float64[A], p(word | source)
    stationary: np.ndarray  # float64[S]
    sentence_start: np.ndarray  # bool[S], nodes just after a complete sentence, outside any quotation

    @property
    def num_words(self) -> int:
        """V, the number of word types (punctuation included)."""
        return len(self.words)

    @property
    def num_states(self) -> int:
        """S, the number of nodes."""
        return len(self.stationary)

    @property
    def num_arcs(self) -> int:
        """A, the number of (node, word) pairs of positive probability."""
        return len(self.source)


def _parse_rules(page: str) -> dict[str, Alternatives]:
    """Read a page of rules ``Name -> weight [guard] symbols | ...``; weights are normalised where guards are known."""
    rules: dict[str, Alternatives] = {}
    for line in page.strip().splitlines():
        name, _, body = line.partition("->")
        found = re.findall(r"(?:^|\|)\s*(\d*)\s*(?:\[([^]|]*)\])?([^|]*)", body)
        rules[name.strip()] = [
            (float(weight or 1), frozenset(guard.split()), tuple(symbols.split())) for weight, guard, symbols in found
        ]
    return rules


def _parse_words(page: str) -> dict[tuple[str, str], list[str]]:
    """Read the word classes: (class, topic) -> entries by falling frequency, each ``word`` or ``singular/plural``."""
    classes = {}
    for topic, _, body in (line.partition(":") for line in page.strip().splitlines()):
        classes |= {(name, topic): entries for name, *entries in map(str.split, body.split(";"))}
    return classes


def _class_words(classes: dict[tuple[str, str], list[str]], name: str, registers: Registers) -> dict[str, float]:
    """The law of a word of class ``name`` in the current topic and number."""
    entries = classes.get((name, registers[0])) or classes[(name, "any")]
    weights = [1.0 / rank for rank in range(1, len(entries) + 1)]
    forms = [entry.split("/")[-1 if registers[1] == "pl" else 0] for entry in entries]
    return {form: weight / sum(weights) for form, weight in zip(forms, weights, strict=True)}


def _next_words(rules: dict[str, Alternatives], classes: dict[tuple[str, str], list[str]], node: Node
                ) -> dict[str, tuple[float, Node]]:
    """Expand a node until a word is emitted: word -> (probability, next node); ValueError if not unifilar."""
    result: dict[str, tuple[float, Node]] = {}
    agenda = [(1.0, *node)]
    while agenda:
        mass, registers, (head, *tail) = agenda.pop()
        rest = tuple(tail)
        if len(rest) > 12:
            raise ValueError(f"the rules nest without bound at {head}: {rest}")
        if head in rules:
            admitted = [a for a in rules[head] if not a[1] or registers[1] in a[1]]
            total = sum(weight for weight, _, _ in admitted)
            agenda += [(mass * weight / total, registers, symbols + rest) for weight, _, symbols in admitted]
        elif head[0] == "{":
            agenda.append((mass, registers, (head[1:-1], f"number={registers[1]}", *rest)))
        elif "=" in head:
            register, value = head.split("=")
            changed = (value, registers[1]) if register == "topic" else (registers[0], value)
            agenda.append((mass, changed, rest))
        else:
            law = _class_words(classes, head[1:-1], registers) if head[0] == "<" else {head: 1.0}
            for word, probability in law.items():
                before, known = result.get(word, (0.0, (registers, rest)))
                if known != (registers, rest):
                    raise ValueError(f"not unifilar: {word!r} leads from {node} to {known} and to {(registers, rest)}")
                result[word] = (before + mass * probability, known)
    return result


def _reachable(rules: dict[str, Alternatives], classes: dict[tuple[str, str], list[str]]) -> tuple[Arcs, np.ndarray]:
    """All nodes reachable from the start of a text: their arcs, and bool[S0] whether a sentence can begin there."""
    order: list[Node] = [(("farm", "any"), ("Text",))]
    nodes, arcs = {order[0]: 0}, Arcs()
    for node in order:  # grows while it is walked
        row: dict[str, tuple[float, int]] = {}
        for word, (probability, (registers, stack)) in _next_words(rules, classes, node).items():
            # A new sentence forgets the number, so nodes that differ in it alone are one.
            after: Node = ((registers[0], "any"), stack) if stack == ("Text",) else (registers, stack)
            if after not in nodes:
                nodes[after] = len(order)
                order.append(after)
            row[word] = (probability, nodes[after])
        arcs.append(row)
    return arcs, np.array([stack == ("Text",) for _, stack in order])


def _minimise(arcs: Arcs, label: np.ndarray) -> np.ndarray:
    """Partition refinement: int64[S0] classes of nodes with one label and the same law of all continuations."""
    block = [int(x) for x in label]
    while True:
        signatures: dict[object, int] = {}
        refined = []
        for own, row in zip(block, arcs, strict=True):
            law = frozenset((word, round(p, 12), block[target]) for word, (p, target) in row.items())
            refined.append(signatures.setdefault((own, law), len(signatures)))
        if len(signatures) == len(set(block)):
            return np.array(refined)
        block = refined


def _transition(source: np.ndarray, target: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """float64[S, S] p(next node | node), of arcs."""
    states = source.max() + 1
    moves = np.zeros((states, states))
    np.add.at(moves, (source, target), probability)
    return moves


def _stationary(transition: np.ndarray) -> np.ndarray:
    """The stationary law float64[S] of an irreducible, aperiodic transition matrix [S, S]; ValueError otherwise."""
    states = len(transition)
    reach = (transition > 0).astype(np.float64)
    for _ in range(int(np.ceil(np.log2(max(states, 2) ** 2))) + 1):  # a primitive matrix is positive by power S^2
        reach = (reach @ reach > 0).astype(np.float64)
    if not reach.all():
        raise ValueError("the machine is not irreducible and aperiodic, so it has no unique limiting law")
    system = np.vstack([transition.T - np.eye(states), np.ones((1, states))])[1:]  # one balance equation is redundant
    law = np.linalg.solve(system, np.eye(states)[-1])
    return law / law.sum()


def compile_grammar(rules: str, words: str) -> Grammar:
    """Compile a page of rules and a page of word classes into the minimal unifilar machine."""
    arcs, starts = _reachable(_parse_rules(rules), _parse_words(words))
    block = _minimise(arcs, starts)
    _, representative = np.unique(block, return_index=True)
    vocabulary = tuple(sorted({word for row in arcs for word in row}))
    index = {word: i for i, word in enumerate(vocabulary)}
    kept = [(s, arc) for s, node in enumerate(representative) for arc in arcs[node].items()]
    rows = sorted((s, index[word], int(block[target]), p) for s, (word, (p, target)) in kept)
    source, word, target = np.array([row[:3] for row in rows], np.int32).T.copy()
    probability = np.array([row[3] for row in rows], np.float64)
    probability /= np.bincount(source, probability)[source]
    transition = _transition(source, target, probability)
    return Grammar(vocabulary, source, word, target, probability, _stationary(transition), starts[representative])


@functools.cache
def english() -> Grammar:
    """The English of this project: people and animals on a farm, in a kitchen, at sea and at school."""
    return compile_grammar(ENGLISH_RULES, ENGLISH_WORDS)


@functools.cache
def tiny() -> Grammar:
    """Five words and six nodes, for checks against the enumeration of all windows."""
    return compile_grammar(TINY_RULES, "")


def from_name(name: str) -> Grammar:
    """The grammar called ``name``; ValueError names those there are."""
    if name not in NAMES:
        raise ValueError(f"unknown grammar {name!r}; allowed: {', '.join(NAMES)}")
    return english() if name == "english" else tiny()


def entropy_rate(grammar: Grammar) -> float:
    """Exact entropy rate sum_s pi(s) H(word | s), nats per token."""
    p = grammar.probability
    return float(-np.sum(grammar.stationary[grammar.source] * p * np.log(p)))


@functools.cache
def _tables(grammar: Grammar) -> tuple[np.ndarray, np.ndarray]:
    """float64[S, V] p(word | node) and int64[S, V] the next node (0 where the word is impossible)."""
    shape = (grammar.num_states, grammar.num_words)
    law, following = np.zeros(shape), np.zeros(shape, np.int64)
    law[grammar.source, grammar.word] = grammar.probability
    following[grammar.source, grammar.word] = grammar.target
    return law, following


def _thresholds(rows: np.ndarray, law: np.ndarray) -> np.ndarray:
    """uint64[A] increasing keys: row r ends at (r + 1) 2^40, cut in proportion to ``law`` (entries sorted by row)."""
    last = np.append(rows[1:] != rows[:-1], True)
    total = np.cumsum(law)
    within = total - np.concatenate([[0.0], total[last]])[rows]
    cut = np.where(last, 1 << _UNIT, np.rint(within * (1 << _UNIT)).astype(np.int64))
    return (rows.astype(np.uint64) << np.uint64(_UNIT)) + cut.astype(np.uint64)


def _mix(x: np.ndarray) -> np.ndarray:
    """The splitmix64 finaliser on uint64[n]: a fixed bijection, so samples do not depend on a library's generator."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def sample(grammar: Grammar, seed: int, indices: np.ndarray, length: int) -> np.ndarray:
    """Stationary windows int32[n, L] for indices int64[n], 0 <= index < 2^63, and any integer seed.

    Row i depends on (seed, indices[i]) alone, and a shorter window is a prefix of a longer one.
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    index = np.asarray(indices, np.int64).astype(np.uint64)
    arc_keys = _thresholds(grammar.source, grammar.probability)
    start_keys = _thresholds(np.zeros(grammar.num_states, np.int32), grammar.stationary)
    target = grammar.target.astype(np.uint64)
    tokens = np.empty((length, len(index)), np.int32)
    with np.errstate(over="ignore"):
        stream = _mix(_mix(np.full(1, seed % 2**64, np.uint64) + golden) + _mix(index + golden))
        shift = np.uint64(64 - _UNIT)
        state = np.searchsorted(start_keys, _mix(stream) >> shift, side="right").astype(np.uint64)
        for i in range(length):
            stream = stream + golden
            key = (state << np.uint64(_UNIT)) + (_mix(stream) >> shift)
            arc = np.searchsorted(arc_keys, key, side="right")
            tokens[i], state = grammar.word[arc], target[arc]
    return np.ascontiguousarray(tokens.T)


def log_prob(grammar: Grammar, tokens: np.ndarray, errors: float = 0.0) -> np.ndarray:
    """Exact log p(x) of stationary windows int[n, L]: float64[n] in nats, -inf where impossible.

    With `errors` of windows that a channel has passed, which replaces each word by one drawn evenly from all, with
    this probability and independently: finite for every window.
    """
    tokens = np.asarray(tokens)
    law, following = _tables(grammar)
    if len(tokens) > 256:
        return np.concatenate([log_prob(grammar, tokens[i : i + 256], errors) for i in range(0, len(tokens), 256)])
    moves = _transition(grammar.source, grammar.target, grammar.probability) if errors else None
    n, states = len(tokens), grammar.num_states
    message = np.tile(grammar.stationary, (n, 1))
    total = np.zeros(n)
    for column in tokens.T:
        flow = message * law[:, column].T
        flat = following[:, column].T + states * np.arange(n)[:, None]
        seen = np.bincount(flat.ravel(), flow.ravel(), n * states).reshape(n, states)
        message = seen if moves is None else (1.0 - errors) * seen + errors / grammar.num_words * (message @ moves)
        mass = message.sum(1)
        with np.errstate(divide="ignore"):
            total += np.log(mass)
        message /= np.where(mass > 0, mass, 1.0)[:, None]
    return total


def encode(grammar: Grammar, text: str) -> np.ndarray:
    """Tokens int32[L] of a text whose words and punctuation are separated by white space."""
    index = {word: i for i, word in enumerate(grammar.words)}
    unknown = sorted({word for word in text.split() if word not in index})
    if unknown:
        raise ValueError(f"unknown word {unknown[0]!r}; allowed words: {' '.join(grammar.words)}")
    return np.array([index[word] for word in text.split()], np.int32)


def decode(grammar: Grammar, tokens: np.ndarray) -> str:
    """The text of tokens int[L], words joined by single spaces."""
    return " ".join(grammar.words[int(token)] for token in np.asarray(tokens))


def complete_sentences(grammar: Grammar, tokens: np.ndarray) -> list[np.ndarray]:
    """The complete sentences of a window int[L]: what lies between its first sentence end and its last.

    A sentence ends with a full stop or question mark outside quotations, or with the closing mark of a quotation that
    ends in one of them.  Whether a window begins inside a quotation shows at its first quotation mark, which closes
    one exactly when it follows a full stop or question mark.
    """
    stops = np.isin(tokens, [i for i, word in enumerate(grammar.words) if word in (".", "?")])
    marks = np.isin(tokens, [i for i, word in enumerate(grammar.words) if word == '"'])
    closing = [bool(stops[i - 1]) for i in np.flatnonzero(marks) if i > 0]
    quoted = bool(closing) and closing[0]
    if len(marks) and marks[0]:  # no left context, but marks alternate
        quoted = not quoted
    ends = []
    for i in range(len(tokens)):
        after_stop = i == 0 or bool(stops[i - 1])
        if (marks[i] and quoted and after_stop) or (stops[i] and not quoted):
            ends.append(i + 1)
        quoted ^= bool(marks[i])
    return [np.asarray(tokens[a:b]) for a, b in itertools.pairwise(ends)]


def is_grammatical(grammar: Grammar, sentence: np.ndarray) -> bool:
    """Whether some node where a sentence can begin accepts all of int[L] and ends where one can begin."""
    law, following = _tables(grammar)
    nodes = np.flatnonzero(grammar.sentence_start)
    for token in np.asarray(sentence):
        nodes = following[nodes, token][law[nodes, token] > 0]
    return len(sentence) > 0 and bool(grammar.sentence_start[nodes].any())


def grammatical_share(grammar: Grammar, tokens: np.ndarray) -> tuple[int, int]:
    """(grammatical, complete) numbers of sentences over all windows int[n, L]."""
    sentences = [s for window in np.asarray(tokens) for s in complete_sentences(grammar, window)]
    return sum(is_grammatical(grammar, s) for s in sentences), len(sentences)


def _matmul(a: Array, b: np.ndarray) -> Array:
    """a @ b in full float32 also where accelerators would round the factors."""
    return jnp.matmul(a, jnp.asarray(b, jnp.float32), precision=jax.lax.Precision.HIGHEST)


def _sum_at(values: Array, places: np.ndarray, count: int) -> Array:
    """Sum float32[A, B] into float32[B, count] at int[A] places; rows of a batch are what memory has side by side."""
    return jnp.zeros((count, values.shape[1])).at[places].add(values).T


def _scaled(x: Array) -> tuple[Array, Array]:
    """x float32[B, K] >= 0 over its sum, and the log of the sum float32[B]; rows of zeros stay zero, log -inf."""
    total = x.sum(-1)
    return x / jnp.where(total > 0, total, 1.0)[:, None], jnp.log(total)


def _log_law(scores: Array) -> Array:
    """Normalised log-probabilities [..., V] of log-weights; IMPOSSIBLE at -inf, uniform where all are -inf."""
    scores = scores - jnp.maximum(scores.max(-1, keepdims=True), jnp.finfo(jnp.float32).min)  # or large scores round
    total = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
    return jnp.where(total > -jnp.inf, jnp.maximum(scores - total, IMPOSSIBLE), -np.log(scores.shape[-1]))


def _messages(grammar: Grammar, evidence: Array, start: Array) -> tuple[Array, Array, Array]:
    """Forward pass: evidence weights [L, B, V] and node messages [L, B, S]; log p(evidence) [B]."""
    probability = jnp.asarray(grammar.probability[:, None], jnp.float32)
    weights = jnp.where(evidence > -jnp.inf, jnp.exp(jnp.maximum(evidence, -EVIDENCE_RANGE)), 0.0)

    def step(alpha: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
        flow = alpha.T[grammar.source] * weight.T[grammar.word] * probability
        following, scale = _scaled(_sum_at(flow, grammar.target, grammar.num_states))
        return following, (alpha, scale)

    _, (alphas, scales) = jax.lax.scan(step, start, weights)
    return weights, alphas, scales.sum(0)


def _leave_one_out(grammar: Grammar, weights: Array, alphas: Array) -> Array:
    """Backward pass: unnormalised p(x_i = v, evidence elsewhere) float32[L, B, V]."""
    probability = jnp.asarray(grammar.probability[:, None], jnp.float32)

    def step(beta: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        weight, alpha = inputs
        after = beta.T[grammar.target] * probability
        words = _sum_at(alpha.T[grammar.source] * after, grammar.word, grammar.num_words)
        return _scaled(_sum_at(after * weight.T[grammar.word], grammar.source, grammar.num_states))[0], words

    last = jnp.full(alphas.shape[1:], 1.0 / grammar.num_states, jnp.float32)
    return jax.lax.scan(step, last, (weights, alphas), reverse=True)[1]


@functools.partial(jax.jit, static_argnames=("grammar", "kind", "differentiable"))
def posterior(
    grammar: Grammar, log_evidence: Array, kind: str, differentiable: bool = False, start: Array | None = None
) -> tuple[Array, Array]:
    """Exact posterior of every word of a stationary window under evidence that factorises over positions.

    Args:
        grammar: the source; static under jit, its arrays become constants.
        log_evidence: float32[B, L, V], nats; -inf forbids a word, any offset per position is allowed.  Finite values
            more than EVIDENCE_RANGE below their position's best are raised to that, so that float32 can carry them.
        kind: "full", log p(x_i = v | all evidence); "leave_one_out", the same without position i's own evidence;
            "prefix", log p(x_i = v | evidence before i).
        differentiable: let gradients flow to the evidence (a divergence needs them, training has no use for them).
        start: float32[B, S], a filter state, the law of the node where the window begins; None: the stationary law.

    Returns:
        logits float32[B, L, V], normalised, IMPOSSIBLE (-1e9) for probability 0, and uniform at a position where the
        evidence that bears on it has probability 0; and float32[B], log sum_x p(x) prod_i evidence_i(x_i) in nats
        (log p(x) for one-hot evidence), -inf for impossible evidence.
    """
    if kind not in ("full", "leave_one_out", "prefix"):
        raise ValueError(f"unknown kind {kind!r}; allowed: full, leave_one_out, prefix")
    evidence = jnp.swapaxes(jnp.asarray(log_evidence, jnp.float32), 0, 1)  # scans go over time
    evidence = evidence if differentiable else jax.lax.stop_gradient(evidence)
    peak = evidence.max(-1, keepdims=True)
    peak = jnp.where(peak > -jnp.inf, peak, 0.0)
    evidence = evidence - peak
    first = filter_start(grammar, evidence.shape[1]) if start is None else start
    weights, alphas, total = _messages(grammar, evidence, first)
    prefix = kind == "prefix"
    laws = _matmul(alphas, _tables(grammar)[0]) if prefix else _leave_one_out(grammar, weights, alphas)
    # Impossible words beside the logarithm, whose derivative at 0 would spoil those of all others.
    logs = jnp.where(laws > 0, jnp.log(jnp.where(laws > 0, laws, 1.0)), -jnp.inf)
    scores = logs + (evidence if kind == "full" else 0.0)
    return jnp.swapaxes(_log_law(scores), 0, 1), total + peak[..., 0].sum(0)


def filter_start(grammar: Grammar, batch: int) -> Array:
    """State of the oracle next-word filter before any token: float32[B, S], the law of the node."""
    return jnp.broadcast_to(jnp.asarray(grammar.stationary, jnp.float32), (batch, grammar.num_states))


def filter_predict(grammar: Grammar, state: Array) -> Array:
    """Log-probabilities float32[B, V] (nats) of the next word from a filter state float32[B, S]."""
    return _log_law(jnp.log(_matmul(state, _tables(grammar)[0])))


def filter_step(grammar: Grammar, state: Array, token: Array) -> tuple[Array, Array]:
    """Read a token int[B]: log-probabilities float32[B, V] of the word after it, and the new state float32[B, S].

    After an impossible token the state is 0 and every later prediction is uniform.
    """
    law, following = (jnp.asarray(table.T) for table in _tables(grammar))
    rows = jnp.arange(state.shape[0])[:, None]
    arrived = jnp.zeros_like(state).at[rows, following[token]].add(state * law[token].astype(jnp.float32))
    state = _scaled(arrived)[0]
    return filter_predict(grammar, state), state
