"""What each kind of finding or notice means and what to do about it, as Markdown."""

from __future__ import annotations

HELP: dict[str, str] = {
    "CT001": (
        "The distribution of a position depends on a label that comes later, so it is not a prediction "
        "(C1). Follow the path from the label to the score and cut it at the step that should not see the "
        "label: often a mask that lets later positions in, a shift by one too many, or statistics over "
        "the whole window."
    ),
    "CT002": (
        "The distribution of a position depends on its own label, so the score is not that of a "
        "prediction (C1). Usually inputs and targets are not shifted against each other, or a mask "
        "includes the diagonal."
    ),
    "CT003": (
        "State (weights, deltas, caches) was fitted on a label before that label was scored, and the "
        "score then read it (C1, C3). Score a position before anything is updated on its label, and do "
        "not share adapted state between windows or documents of one batch."
    ),
    "CT004": (
        "Something between the distribution and the score depends on the label, beyond reading the "
        "distribution at it (C2): temperatures, mixtures or clips that are chosen by the label. Fix the "
        "distribution first."
    ),
    "CT005": (
        "What all classes together would be charged at this position does not come to a probability of 1 "
        "(C2): "
        "the row that was read, or what was made of it, is not a normalised distribution. Divide by the "
        "sum over all "
        "classes (`log_softmax`, or `logits.gather(-1, y) - logits.logsumexp(-1, keepdim=True)`) before the "
        "label is read."
    ),
    "CT006": (
        "A position was scored from two different distributions (C4). Keep one score for each position, "
        "and do not choose between runs after the fact. If one of the two is no score (a diagnostic, a loss "
        "after an update, a count that is looked up), name the scores before anything else reads them: "
        "`causaltrace.score(nll)`."
    ),
    "CT090": (
        "An operation without a rule: all of its inputs count as having reached all of its outputs, so "
        "nothing is proved about what comes after. Register a rule with `causaltrace.register_rule`."
    ),
    "CT091": (
        "A value that depends on labels was read by Python (`.item()`, `.numpy()`, `.tolist()`). It is "
        "noticed, not followed. Score the positions before it leaves, or keep the value in torch."
    ),
    "CT092": (
        "Scores may depend on labels that they must not depend on, through opaque operations or values "
        "that left torch. Follow the remedy of each of these."
    ),
    "CT093": (
        "The labels met no loss inside the watch, so nothing was judged. Slice inputs and targets from "
        "the watched tokens inside the block, or call `causaltrace.score`."
    ),
    "CT094": "The watched program raised an exception: the report covers what ran before it.",
    "CT095": "Something about the watch that a reader should know.",
    "CT096": (
        "The verdict rests on a rule that a user registered. Check the rule with "
        "`causaltrace.testing.check_rule`."
    ),
    "CT097": (
        "What a static audit proves: for any weights and tokens, given the listed constants (masks, index "
        "tables). Audit again if they change."
    ),
    "CT098": (
        "The program called `causaltrace.declassify`: from there on these values count as depending on no "
        "label, for the reason that it gives. The verdict rests on that reason; read it."
    ),
    "CT099": (
        "An operation read memory that no operation was seen to write (`torch.empty`), and the result was "
        "used. It may hold what a kernel outside torch put there, or what was in memory before. Fill it in "
        "torch, or declare the kernel with `causaltrace.kernel_rule`."
    ),
    "CT101": (
        "These labels, or numbers that depend on them, went to Python before they were scored, and they were "
        "never scored after that. That may be a log, and it may be a score: `p[y.item()]` or `p.tolist()[y]` "
        "is a number like any other. Read rows at labels in torch or numpy, or name the scores with "
        "`trace.score(...)`; then nothing else counts."
    ),
    "CT102": (
        "Lists or bytes that repeat all watched labels were there before the watch opened. "
        "They tell nobody who reads them, so nothing is proved about a program that could. Make them inside "
        "the watch from the watched tokens, or delete them (`del ids`) before it opens."
    ),
    "CT100": (
        "Nothing accuses these scores, and nothing shows that all classes together would be charged a "
        "probability of 1 "
        "(C2): a tilt, a clip or another closed form. Make the whole row, normalise it, and read it at "
        "the label; "
        "or pass it: `trace.score(nll, distribution=row)`. Where the values are no scores, name those "
        "that are with "
        "`trace.score(nll)`."
    ),
}
