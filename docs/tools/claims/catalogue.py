"""The claims of papers, each in one sentence with the evidence that decides it; settings by name, as in a sweep.

Figures of the papers are not repeated: their models, data and budgets are others. What is tried is the direction.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import quantities as q
from .evidence import Compare, Evidence, Level, Undominated
from .records import Side, varied
from .rule import Way

QUARK = "Quark (Lu et al. 2022)"
PRETRAINING = "Pretraining with human preferences (Korbak et al. 2023)"
INFERENCE = "KL-regularised RL as Bayesian inference (Korbak et al. 2022)"
UNLIKELIHOOD = "Unlikelihood training (Welleck et al. 2019)"
BENIGN = "Benign relearning (Hu et al. 2024, arXiv:2406.13356)"
ROUNDING = "Quantisation of unlearned models (Zhang et al. 2024, arXiv:2410.16454)"
MECHANISM = "How DPO reduces toxicity (Lee et al. 2024, arXiv:2401.01967)"
FILTERED = "Filtered pretraining resists tampering (O'Brien et al. 2025, arXiv:2508.06601)"
CONDITIONAL = "Conditional pretraining"
CAUSES = "Suspected causes, tried by changing them"
THREE = ("toxicity", "sentiment", "repetition")
TOXICITY, REPETITION = ("toxicity",), ("repetition",)


@dataclass(frozen=True)
class Claim:
    """A claim of a paper; all of its evidence must hold, on each task by itself."""

    paper: str
    where: str  # section of the paper
    text: str
    evidence: tuple[Evidence, ...]
    tasks: tuple[str, ...] = TOXICITY


quark, ppo, base = Side("quark"), Side("ppo"), Side("base")
weak, strong = Side("quark", knob=4), Side("quark", knob=0)  # of its KL coefficient
frequent = varied("quark", explore_every=15, explore_prompts=500)
seldom = varied("quark", explore_every=60, explore_prompts=2000)
with_unlikelihood = varied("quark", unlikelihood_coef=0.1)

mle = varied("mle", start="scratch")
conditional = varied("conditional_pretraining", start="scratch", mle_share=0.0, quantile=0.5)
mostly_good = varied("conditional_pretraining", start="scratch", mle_share=0.0, quantile=0.1)
filtering = varied("filtering", start="scratch", mle_share=0.0)
others = {
    "unlikelihood": varied("unlikelihood", start="scratch"),
    "rwr": varied("rwr", start="scratch", beta=0.1),
    "awr": varied("awr", start="scratch"),
}
five = {"conditional_pretraining": conditional, "filtering": filtering, **others}
as_published = varied("rwr", start="scratch", beta=10.0)

free = varied("reinforce", kl_coef=0.0)
reinforce, gdc = Side("reinforce"), Side("gdc")
reverse = varied("gdc", divergence="reverse_kl")
longer = {"reinforce": varied("reinforce", kl_coef=0.05), "gdc": varied("gdc", divergence="forward_kl")}

token = varied("unlikelihood", level="token")
sequence = varied("unlikelihood", level="sequence", ngram=4)
tuned = Side("mle")


def _compare(a: Side, b: Side, *parts: tuple[q.Quantity, Way]) -> tuple[Evidence, ...]:
    return tuple(Compare(a, b, quantity, way) for quantity, way in parts)


def _of_quark() -> list[Claim]:
    def removes_more(than: str, where: str) -> Claim:
        text = f"Quark removes more of the habit than {than}, at equal compute"
        return Claim(QUARK, where, text, _compare(quark, Side(than), (q.REMOVED, "more")), THREE)

    return [
        removes_more("ppo", "3"),
        removes_more("dexperts", "3.1, 3.2"),
        removes_more("unlikelihood", "3.3"),
        Claim(QUARK, "3", "Quark stays closer to the base than ppo", _compare(quark, ppo, (q.KL, "less")), THREE),
        Claim(QUARK, "3", "Quark's text is more fluent than ppo's", _compare(quark, ppo, (q.PPL, "less")), THREE),
        Claim(
            QUARK, "4", "More quantiles remove more of the habit",
            _compare(varied("quark", num_quantiles=6), varied("quark", num_quantiles=2), (q.REMOVED, "more")),
        ),
        Claim(
            QUARK, "4", "More quantiles move further from the base",
            _compare(varied("quark", num_quantiles=6), varied("quark", num_quantiles=2), (q.KL, "more")),
        ),
        Claim(
            QUARK, "4", "A larger KL coefficient keeps Quark closer to the base and removes less of the habit",
            _compare(strong, weak, (q.KL, "less"), (q.REMOVED, "less")), THREE,
        ),
        Claim(
            QUARK, "4", "More frequent exploration removes more of the habit, with as many samples and equal compute",
            _compare(frequent, seldom, (q.REMOVED, "more")),
        ),
        Claim(
            QUARK, "4", "Reward tokens remove more of the habit than training on the best quantile alone",
            _compare(quark, Side("best_quantile"), (q.REMOVED, "more")), THREE,
        ),
        Claim(
            QUARK, "3.3", "Quark with unlikelihood removes more repetition than Quark alone and than unlikelihood alone",
            (*_compare(with_unlikelihood, quark, (q.REMOVED, "more")),
             *_compare(with_unlikelihood, Side("unlikelihood"), (q.REMOVED, "more"))), REPETITION,
        ),
    ]  # fmt: skip


def _of_pretraining() -> list[Claim]:
    found = [
        Claim(PRETRAINING, "4", f"Pretraining by {name} shows less of the habit than by maximum likelihood, {words}",
              _compare(side, mle, (quantity, "less")))
        for name, side in five.items()
        for words, quantity in (("without a prompt", q.UNCONDITIONAL), ("on adversarial prompts", q.ADVERSARIAL))
    ]  # fmt: skip
    best = ((q.UNDESIRED, "less"), (q.CLEAN, "less"))
    rest = tuple(side for name, side in five.items() if name != "conditional_pretraining")
    return [
        *found,
        Claim(
            PRETRAINING, "4", f"{CONDITIONAL} shows at most a tenth of the habit of maximum likelihood, without a prompt",
            (Compare(conditional, mle, q.UNCONDITIONAL, "less", scale=0.1),),
        ),
        Claim(
            PRETRAINING, "4", f"{CONDITIONAL} shows at most a tenth of the habit of maximum likelihood, on adversarial prompts",
            (Compare(conditional, mle, q.ADVERSARIAL, "less", scale=0.1),),
        ),
        Claim(
            PRETRAINING, "4", f"{CONDITIONAL} is Pareto-optimal among the five in undesired score and clean-text NLL",
            (Undominated(conditional, rest, best),),
        ),
        Claim(
            PRETRAINING, "4", f"{CONDITIONAL} keeps the NLL of clean text of maximum likelihood",
            _compare(conditional, mle, (q.CLEAN, "equal")),
        ),
        Claim(
            PRETRAINING, "4", "Filtering costs more clean-text NLL than conditional pretraining",
            _compare(filtering, conditional, (q.CLEAN, "more")),
        ),
        Claim(
            PRETRAINING, "4", "RWR at the published beta = 10 is maximum likelihood",
            _compare(as_published, mle, (q.UNDESIRED, "equal"), (q.CLEAN, "equal")),
        ),
        Claim(
            PRETRAINING, "4", f"{CONDITIONAL} answers a question about the grammar as well as maximum likelihood",
            _compare(conditional, mle, (q.QUESTION, "equal")),
        ),
        Claim(
            PRETRAINING, "4", "So it does after both were finetuned on such questions",
            _compare(conditional, mle, (q.TUNED, "equal")),
        ),
        *(
            Claim(
                PRETRAINING, "5",
                f"Feedback from the start ({name}) leaves less of the habit than on the last {last} % of the tokens",
                _compare(side, varied(side.method, start="scratch", mle_share=share), (q.UNDESIRED, "less")),
            )
            for name, side in (("conditional_pretraining", conditional), ("filtering", filtering))
            for last, share in ((50, 0.5), (10, 0.9))
        ),
        Claim(
            PRETRAINING, "4.2", f"{CONDITIONAL} resists a searched adversarial prompt better than maximum likelihood",
            _compare(conditional, mle, (q.SEARCHED, "less")),
        ),
    ]  # fmt: skip


def _of_inference() -> list[Claim]:
    return [
        Claim(
            INFERENCE, "abstract", "RL without KL collapses: less entropy, more mass on one response, fewer distinct bigrams",
            _compare(free, reinforce, (q.ENTROPY, "less"), (q.MODAL, "more"), (q.DISTINCT_2, "less")),
        ),
        *(
            Claim(INFERENCE, "abstract", f"{side.method}: the log-ratio is affine in the reward with slope 1 / beta",
                  (Level(side, q.SLOPE, "equal", 1.0),), ("toxicity", "sentiment"))
            for side in (reinforce, gdc)
        ),
        *(
            Claim(INFERENCE, "abstract", f"{side.method}: training lowers the KL to the posterior",
                  (Level(side, q.APPROACH, "less"),), ("toxicity", "sentiment"))
            for side in (reinforce, gdc)
        ),
        Claim(
            INFERENCE, "abstract", "Matching the posterior by the forward KL keeps more entropy than by the reverse KL",
            _compare(gdc, reverse, (q.ENTROPY, "more")),
        ),
        Claim(
            INFERENCE, "abstract", "The reverse KL comes closer to the posterior in the KL that it minimises",
            _compare(reverse, gdc, (q.TO_POSTERIOR, "less")),
        ),
    ]  # fmt: skip


def _of_unlikelihood() -> list[Claim]:
    return [
        *(
            Claim(UNLIKELIHOOD, "6", f"{name}-level unlikelihood repeats less than maximum likelihood",
                  _compare(side, tuned, (q.REPEATS, "less")), REPETITION)
            for name, side in (("Token", token), ("Sequence", sequence))
        ),
        Claim(
            UNLIKELIHOOD, "6", "Token-level unlikelihood uses more unique tokens than maximum likelihood",
            _compare(token, tuned, (q.DISTINCT_1, "more")), REPETITION,
        ),
        Claim(
            UNLIKELIHOOD, "6", "Token-level unlikelihood keeps the NLL of clean text of maximum likelihood",
            _compare(token, tuned, (q.CLEAN, "equal")), REPETITION,
        ),
        Claim(
            UNLIKELIHOOD, "6", "Sequence-level unlikelihood repeats less than token-level",
            _compare(sequence, token, (q.REPEATS, "less")), REPETITION,
        ),
    ]  # fmt: skip


def _of_the_habits_return() -> list[Claim]:
    """What probes of finished policies tell; the oracle was trained as the base was, without the habit."""
    oracle = Side("oracle")
    unlearned = ("dpo", "npo", "gradient_ascent", "quark")
    return [
        *(
            Claim(BENIGN, "abstract", f"Training on harmless text brings the habit back after {method}",
                  (Level(Side(method), q.BENIGN, "more"),), THREE)
            for method in unlearned
        ),
        *(
            Claim(ROUNDING, "abstract", f"Rounding the weights to 4 bits brings the habit back after {method}",
                  (Level(Side(method), q.ROUNDED, "more"),), THREE)
            for method in unlearned
        ),
        Claim(
            MECHANISM, "abstract",
            "DPO by-passes the habit: ten updates on text with it bring more back than a policy learns that never had it",
            _compare(Side("dpo"), oracle, (q.SOON, "more")), THREE,
        ),
        *(
            Claim(FILTERED, "abstract",
                  f"A policy pretrained without the habit resists relearning longer than one after {method}",
                  _compare(oracle, Side(method), (q.TAUGHT, "more")), THREE)
            for method in ("dpo", "npo", "quark", "ppo", "filtering")
        ),
    ]  # fmt: skip


def _causes() -> list[Claim]:
    return [
        Claim(
            CAUSES, "own",
            "Quark removes more where reward tokens start twice as far apart as words, which a small policy tells apart late",
            _compare(quark, varied("quark", token_spread=1.0), (q.REMOVED, "more")),
        ),
        *(
            Claim(
                CAUSES, "own",
                f"GRPO at kl_coef = {beta:g}: dividing advantages by the group's standard deviation weakens the KL penalty",
                _compare(*(varied("grpo", scale=scale, kl_coef=beta) for scale in ("group", "none")), (q.KL, "more")),
                ("sentiment",),
            )
            for beta in (0.05, 0.2)
        ),
        Claim(
            CAUSES, "own", f"{CONDITIONAL} knows clean text better where nine tenths of the segments count as good, not half",
            _compare(mostly_good, conditional, (q.CLEAN, "less")),
        ),
        *(
            Claim(
                CAUSES, "own", f"{side.method}: with twice the budget the slope comes nearer to 1 / beta",
                _compare(longer[side.method], side, (q.SLOPE, "more")),
            )
            for side in (reinforce, gdc)
        ),
    ]  # fmt: skip


CLAIMS: tuple[Claim, ...] = (
    *_of_quark(), *_of_pretraining(), *_of_inference(), *_of_unlikelihood(), *_of_the_habits_return(), *_causes(),
)  # fmt: skip
