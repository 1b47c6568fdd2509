"""The equations of PJFNN, APJFNN and BPJFNN one pair, one item and one word at a time, with the weights of a model.

Slow on purpose, and without padding: what the vectorised models compute, as the papers' equations are read. Tests
compare outputs and gradients with these, benchmarks their time. Dropout must be 0.
"""

import torch
from torch.nn import functional

__all__ = ["apjfnn_logits", "bpjfnn_logits", "pjfnn_logits", "words_of"]


def words_of(model, kind, number):
    """The items of a document as lists of word ids."""
    table = getattr(model, f"{kind}_items")
    items = [table[row] for row in getattr(model, f"{kind}_rows")[number].tolist() if row]
    return [[word for word in item.tolist() if word] for item in items]


def _states(lstm, vectors):
    """(T, H) of one sequence of T vectors."""
    return lstm(torch.stack(list(vectors)).unsqueeze(0))[0][0]


def _attend(states, scores):
    weights = torch.softmax(torch.stack(scores), 0)
    return sum(weight * state for weight, state in zip(weights, states, strict=True))


def _own(attention, states):
    """v . tanh(W h + b) of each h."""
    return [attention.v(torch.tanh(attention.of_state(h))).squeeze() for h in states]


def _with(attention, context, states):
    """v . tanh(W x + b + M h) of each h."""
    return [attention.v(torch.tanh(attention.of_context(context) + attention.of_state(h))).squeeze() for h in states]


def _fit(model, job, resume):
    joined = torch.cat([job, resume, job - resume])
    return model.head.outer(torch.tanh(model.head.inner(joined))).squeeze()


def apjfnn_logits(model, users, items):
    """(B,) logits."""
    logits = []
    for user, item in zip(users.tolist(), items.tolist(), strict=True):
        zero = model.words.weight.new_zeros(model.states)
        s = []
        for words in words_of(model, "jd", item):
            h = _states(model.job_words, (model.words.weight[word] for word in words))
            s.append(_attend(h, _own(model.alpha, h)))  # (1)
        job = zero
        if s:
            c = _states(model.job_items, s)
            job = _attend(c, _own(model.beta, c))  # (2)
        u = []
        for words in words_of(model, "cv", user):
            h = _states(model.resume_words, (model.words.weight[word] for word in words))
            several = [_attend(h, _with(model.gamma, s_k, h)) for s_k in s]
            u.append(sum(several) / len(several) if several else zero)  # (3)
        resume = zero
        if u:
            c = _states(model.resume_items, u)
            resume = _attend(c, _with(model.delta, job, c))  # (4)
        logits.append(_fit(model, job, resume))
    return torch.stack(logits)


def bpjfnn_logits(model, users, items):
    """(B,) logits."""
    logits = []
    for user, item in zip(users.tolist(), items.tolist(), strict=True):
        sides = []
        for kind, number in (("jd", item), ("cv", user)):
            words = [word for some in words_of(model, kind, number) for word in some]
            if words:
                h = _states(model.lstms[kind], (model.words.weight[word] for word in words))
                sides.append(sum(h) / len(h))
            else:
                sides.append(model.words.weight.new_zeros(2 * model.lstms[kind].hidden_size))
        logits.append(_fit(model, *sides))
    return torch.stack(logits)


def _convolve(conv, row):
    """(C,) at each place of a list of vectors, zeros outside it."""
    reach, out = conv.kernel_size[0] // 2, []
    for t in range(len(row)):
        here = conv.bias
        for o in range(-reach, reach + 1):
            if 0 <= t + o < len(row):
                here = here + conv.weight[:, :, o + reach] @ row[t + o]
        out.append(here)
    return out


def _normalise(norm, rows):
    """ReLU(BN) of all items' vectors together: rows is a list of lists of (C,)."""
    every = torch.stack([vector for row in rows for vector in row])
    if norm.training and len(every) > 1:
        mean, variance = every.mean(0), every.var(0, correction=0)
    else:
        mean, variance = norm.running_mean, norm.running_var
    spread = torch.sqrt(variance + norm.eps)
    return [[functional.relu((v - mean) / spread * norm.weight + norm.bias) for v in row] for row in rows]


def _item_vectors(model, cnn, items):
    """(C,) of each of a list of items."""
    rows = [[model.words.weight[word] for word in item] for item in items]
    rows = _normalise(cnn.first_norm, [_convolve(cnn.first, row) for row in rows])
    rows = [[torch.stack(row[t : t + 2]).amax(0) for t in range(0, len(row), 2)] for row in rows]
    rows = _normalise(cnn.second_norm, [_convolve(cnn.second, row) for row in rows])
    return [torch.stack(row).amax(0) for row in rows]


def pjfnn_logits(model, users, items):
    """(B,) logits. BN takes each distinct item of a side of the batch once."""
    zero, vectors = model.words.weight.new_zeros(model.job_cnn.first.out_channels), {}
    for kind, cnn, ids in (("jd", model.job_cnn, items), ("cv", model.resume_cnn, users)):
        distinct = list({tuple(words): 0 for number in ids.tolist() for words in words_of(model, kind, number)})
        if distinct:
            vectors[kind] = dict(zip(distinct, _item_vectors(model, cnn, distinct), strict=True))
    logits = []
    for user, item in zip(users.tolist(), items.tolist(), strict=True):
        required = [vectors["jd"][tuple(words)] for words in words_of(model, "jd", item)]
        done = [vectors["cv"][tuple(words)] for words in words_of(model, "cv", user)]
        job = sum(required) / len(required) if required else zero
        resume = torch.stack(done).amax(0) if done else zero
        cosine = (job / job.norm().clamp_min(1e-8)) @ (resume / resume.norm().clamp_min(1e-8))
        logits.append(model.scale * cosine + model.bias)
    return torch.stack(logits)
