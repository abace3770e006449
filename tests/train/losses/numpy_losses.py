"""The losses once more, as plain loops in float64 written from the papers' formulas; and slopes by differences."""

import math

import numpy as np

BATCHES = {
    "P x K": [0, 0, 0, 1, 1, 1, 2, 2, 2],
    "uneven": [5, 5, 5, 5, 9, 9, 7, 7, 7],
    "with single crops": [0, 1, 1, 2, 3, 3, 3, 4, 5],
    "only single crops": [0, 1, 2, 3, 4, 5, 6, 7, 8],
    "one identity": [3] * 9,
    "one crop": [0],
}


def difference_gradient(function, x, step=1e-6):
    x, gradient = np.array(x, np.float64), np.zeros(np.shape(x))
    for place in np.ndindex(*x.shape):
        kept = x[place]
        x[place] = kept + step
        above = function(x)
        x[place] = kept - step
        gradient[place] = (above - function(x)) / (2 * step)
        x[place] = kept
    return gradient


def softmax(row):
    powers = [math.exp(value - max(row)) for value in row]
    return np.array(powers) / sum(powers)


def cosine_table(x, y):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return np.array([[a @ b / math.sqrt(a @ a) / math.sqrt(b @ b) for b in y] for a in x])


def smoothed_cross_entropy(logits, labels, smoothing):
    """The mean over rows of -sum(target * log softmax), the targets written out in full."""
    losses = []
    for row, label in zip(np.asarray(logits, np.float64), labels, strict=True):
        target = np.full(len(row), smoothing / (len(row) - 1))
        target[label] = 1 - smoothing
        losses.append(-(target * (row - row.max() - np.log(np.exp(row - row.max()).sum()))).sum())
    return np.mean(losses)


def cosface(cosines, labels, scale, margin):
    logits = np.array(cosines, np.float64)
    for row, label in enumerate(labels):
        logits[row, label] -= margin
    return scale * logits


def arcface(cosines, labels, scale, margin):
    logits = np.array(cosines, np.float64)
    for row, label in enumerate(labels):
        angle = math.acos(logits[row, label])
        if angle + margin < math.pi:
            logits[row, label] = math.cos(angle + margin)
        else:
            logits[row, label] -= margin * math.sin(margin)
    return scale * logits


def circle_classes(cosines, labels, scale, margin):
    """The loss itself: log(1 + sum_n exp(scale a_n (s_n - d_n)) * exp(-scale a_p (s_p - d_p))), the mean over rows."""
    losses = []
    for row, label in zip(np.asarray(cosines, np.float64), labels, strict=True):
        pull = math.exp(-scale * max(0, 1 + margin - row[label]) * (row[label] - (1 - margin)))
        others = [s for place, s in enumerate(row) if place != label]
        push = sum(math.exp(scale * max(0, s + margin) * (s - margin)) for s in others)
        losses.append(math.log1p(push * pull))
    return np.mean(losses)


def anchors(labels):
    """Each crop that has a positive and a negative, with the places of both."""
    for a, label in enumerate(labels):
        positives = [i for i, other in enumerate(labels) if i != a and other == label]
        negatives = [i for i, other in enumerate(labels) if other != label]
        if positives and negatives:
            yield a, positives, negatives


def mean_or_0(losses):
    return float(np.mean(losses)) if losses else 0.0


def triplet_hard(x, labels, margin):
    losses = []
    for a, positives, negatives in anchors(labels):
        gap = max(math.dist(x[a], x[p]) for p in positives) - min(math.dist(x[a], x[n]) for n in negatives)
        losses.append(math.log1p(math.exp(gap)) if margin == "soft" else max(0.0, gap + margin))
    return mean_or_0(losses)


def triplet_weighted(x, labels):
    losses = []
    for a, positives, negatives in anchors(labels):
        to_positives = np.array([math.dist(x[a], x[p]) for p in positives])
        to_negatives = np.array([math.dist(x[a], x[n]) for n in negatives])
        gap = softmax(to_positives) @ to_positives - softmax(-to_negatives) @ to_negatives
        losses.append(math.log1p(math.exp(gap)))
    return mean_or_0(losses)


def circle_pairs(x, labels, scale, margin, weighed_by=None):
    """The weights a_p and a_n come from the embeddings `weighed_by`, since they count as constants in a gradient."""
    cosines, fixed = cosine_table(x, x), cosine_table(*[x if weighed_by is None else weighed_by] * 2)
    losses = []
    for a, positives, negatives in anchors(labels):
        pull = sum(
            math.exp(-scale * max(0, 1 + margin - fixed[a, p]) * (cosines[a, p] - (1 - margin))) for p in positives
        )
        push = sum(math.exp(scale * max(0, fixed[a, n] + margin) * (cosines[a, n] - margin)) for n in negatives)
        losses.append(math.log1p(pull * push))
    return mean_or_0(losses)


def contrastive(x, labels, temperature):
    """L_out, with the sum over crops divided by their number."""
    powers, losses = np.exp(cosine_table(x, x) / temperature), []
    for a, positives, negatives in anchors(labels):
        total = sum(powers[a, i] for i in (*positives, *negatives))
        losses.append(-sum(math.log(powers[a, p] / total) for p in positives) / len(positives))
    return mean_or_0(losses)


def center(x, labels, centers):
    return np.mean([math.dist(row, centers[label]) ** 2 for row, label in zip(x, labels, strict=True)])


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def kl_scores(student, teacher, temperature):
    rows = zip(student, teacher, strict=True)
    return temperature**2 * np.mean([kl(softmax(t / temperature), softmax(s / temperature)) for s, t in rows])


def js_scores(student, teacher, temperature):
    losses = []
    for s, t in zip(student, teacher, strict=True):
        ours, theirs = softmax(s / temperature), softmax(t / temperature)
        between = (ours + theirs) / 2
        losses.append(kl(ours, between) / 2 + kl(theirs, between) / 2)
    return temperature**2 * np.mean(losses)


def relations(student, teacher, temperature):
    losses = []
    ours, theirs = cosine_table(student, student) / temperature, cosine_table(teacher, teacher) / temperature
    for row in range(len(ours)):
        others = [i for i in range(len(ours)) if i != row]
        losses.append(kl(softmax(theirs[row, others]), softmax(ours[row, others])))
    return np.mean(losses)
