"""The page that compares methods on two models."""

from pathlib import Path

import fake_records as fake
import pytest
import transfer_page
from readme_tables import read

from harness.analysis.study import Study
from harness.core.errors import EmptySelection, Unwritable
from harness.records.read import find_runs

TOY = {"ppo": (0.9, 1.0), "quark": (0.85, 1.0), "dpo": (0.8, 1.0), "mle": (0.6, 0.1), "npo": (0.95, 3.0)}  # judge, KL
REAL = {"ppo": (0.9, 1.0), "quark": (0.8, 1.0), "dpo": (0.85, 1.0), "mle": (0.7, 0.1), "rwr": (0.9, 1.0), "npo": (0.6, 0.5)}


def study(root: Path, methods: dict[str, tuple[float, float]], task: str = "toxicity", **model: str) -> Study:
    for method, (judge, kl) in methods.items():
        identity = fake.identity(task, method, 0) | ({"model": model} if model else {})
        final = {"judge": fake.point(judge), "kl": fake.point(kl), "efficiency": fake.point(judge / kl / 10)}
        told = {"manifest": {"identity": identity}, "summary": {"base": fake.BASE | {"judge": fake.point(0.5)}}}
        fake.write_run(root, method, 0, task=task, final=final, **told)
    return Study(*find_runs([root]))


def test_the_correlation_of_the_ranks_by_hand(tmp_path):
    """npo's 3 nats count as half policy, half base: 0.5 + 0.45 / 2 = 0.725. So the toy ranks ppo, quark, dpo, npo, mle 1 to 5
    and the real model ppo, dpo, quark, mle, npo: squared differences 0 + 1 + 1 + 1 + 1, rho = 1 - 6 x 4 / (5 x 24) = 0.8."""
    toy, real = (study(tmp_path / name, methods).groups[0] for name, methods in (("a", TOY), ("b", REAL)))
    found = transfer_page.placed(transfer_page.QUANTITIES[0], toy, real)
    assert {p.method: p.ranks for p in found} == {"ppo": (1, 1), "quark": (2, 3), "dpo": (3, 2), "npo": (4, 5), "mle": (5, 4)}
    assert next(p.toy for p in found if p.method == "npo") == pytest.approx(0.725)
    rho, low, high = transfer_page.correlation(found)
    assert rho == pytest.approx(0.8)
    assert (low, high) == pytest.approx((-0.457, 0.991), abs=0.001)  # tanh(1.0986 -+ 1.96 sqrt(1.32 / 2))


def test_too_few_methods_or_no_spread_give_no_correlation(tmp_path):
    same = dict.fromkeys(TOY, (0.9, 1.0))
    toy, real = study(tmp_path / "a", TOY).groups[0], study(tmp_path / "b", same).groups[0]
    assert transfer_page.correlation(transfer_page.placed(transfer_page.QUANTITIES[0], toy, real)) is None
    few = study(tmp_path / "c", {m: TOY[m] for m in ("ppo", "dpo", "mle")}).groups[0]
    assert transfer_page.correlation(transfer_page.placed(transfer_page.QUANTITIES[0], toy, few)) is None
    assert "fewer than 4 methods" in transfer_page.section(toy, few)


def test_the_page_and_its_picture_from_the_command(tmp_path):
    study(tmp_path / "a", TOY)
    study(tmp_path / "b", REAL, name="SmolLM2-135M")
    page, picture = tmp_path / "transfer.md", tmp_path / "transfer.png"
    words = [str(page), "--toy", str(tmp_path / "a"), "--real", str(tmp_path / "b"), "--picture", str(picture)]
    transfer_page.main(words)
    text, drawn = read(page), picture.read_bytes()
    assert "SmolLM2-135M" in text and "| Judge at the cap | 5 | 0.80 [" in text.replace("\\", "") and "transfer.png" in text
    assert "rwr" not in text and drawn.startswith(b"\x89PNG")
    transfer_page.main(words)
    assert (read(page), picture.read_bytes()) == (text, drawn)
    with pytest.raises(Unwritable, match="cannot be written"):
        transfer_page.main([*words[:-1], str(tmp_path / "no" / "such.png")])


def test_studies_without_a_common_task(tmp_path):
    study(tmp_path / "a", TOY)
    study(tmp_path / "b", REAL, task="sentiment")
    with pytest.raises(EmptySelection, match="no task in common"):
        transfer_page.main([str(tmp_path / "t.md"), "--toy", str(tmp_path / "a"), "--real", str(tmp_path / "b")])
