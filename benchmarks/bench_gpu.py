"""The sampler on a GPU against Hugging Face's `generate`, both in bfloat16, beside what the card could do at most.

    python benchmarks/bench_gpu.py            GPT-2-large's shapes, 400 prompts x 25 responses x 20 tokens; a minute or two

The weights are random, the output head scaled so that the next-token distribution has a trained model's spread: with the
usual start it is flat, and top-p keeps most of the vocabulary. The suite keeps float32 weights and computes in bfloat16;
`generate` has a model of bfloat16 weights, in the batches that fit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from statistics import median

import torch
from page import quartiles
from paired import pairs, timed
from transformers import GPT2Config, GPT2LMHeadModel

from harness.core.types import Decoding, Prompts
from harness.policy.decoding import Captured, Direct
from harness.policy.decoding.families import GPT2Steps
from harness.policy.policy import Policy
from harness.policy.sampler import responses_at_once, sample

PROMPTS, RESPONSES, TOKENS, WIDTH, ENTROPY_SCALE = 400, 25, 20, 16, 3.8
PEER_PROMPTS = 80  # a batch of `generate`; 2,000 responses


def large() -> Policy:
    """GPT-2-large's shapes: 774 million parameters."""
    config = GPT2Config(n_embd=1280, n_layer=36, n_head=20, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = GPT2LMHeadModel(config)
    with torch.no_grad():
        spread = model(torch.randint(1, config.vocab_size, (8, 24), device="cuda")).logits.std(-1).mean()
        model.transformer.ln_f.weight.mul_(ENTROPY_SCALE / spread)
    policy = Policy(model, bos=0, eos=0)
    policy.precision = torch.bfloat16
    return policy


def prompts(n: int = PROMPTS) -> Prompts:
    """Of 4 to 16 tokens."""
    rng = torch.Generator().manual_seed(0)
    length = torch.randint(4, WIDTH + 1, (n, 1), generator=rng)
    return Prompts(torch.randint(1, 50257, (n, WIDTH), generator=rng), torch.arange(WIDTH) >= WIDTH - length)


def ours(policy: Policy, top_p: float) -> Callable[[], object]:
    decoding = Decoding(max_new_tokens=TOKENS, top_p=top_p)
    return lambda: synced(
        lambda: sample(policy, prompts(), decoding=decoding, rng=torch.Generator().manual_seed(0), n=RESPONSES)
    )


def theirs(model: GPT2LMHeadModel, top_p: float) -> Callable[[], object]:
    options = {"do_sample": True, "top_k": 0, "top_p": top_p, "num_return_sequences": RESPONSES, "pad_token_id": 0}
    options |= {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS}

    @torch.no_grad()
    def run() -> None:
        given = prompts().to("cuda")
        for i in range(0, PROMPTS, PEER_PROMPTS):
            some = slice(i, i + PEER_PROMPTS)
            model.generate(given.tokens[some], attention_mask=given.mask[some].long(), **options)

    return lambda: synced(run)


def floor(policy: Policy) -> tuple[float, float]:
    """Seconds that the card needs at least: for the operations, and for the bytes of keys, values and weights.

    Two operations a parameter and token, of 19 steps of every response and of the prompts, once each; the bytes of all keys
    and values that a step reads, those of a prompt once for its responses.
    """
    matmul, bandwidth = ceilings()
    config, rows = policy.model.config, PROMPTS * RESPONSES
    blocks = 12 * config.n_layer * config.n_embd**2
    head = config.n_embd * config.vocab_size
    read = int(prompts().mask.sum())
    operations = 2 * ((blocks + head) * rows * (TOKENS - 1) + blocks * read)
    column = 2 * 2 * config.n_layer * config.n_embd  # keys and values of two bytes
    columns = read * (TOKENS - 1) + rows * TOKENS * (TOKENS - 1) / 2
    batches = -(-rows // responses_at_once(policy, WIDTH + TOKENS))
    moved = column * columns + 2 * (blocks + head) * (TOKENS - 1) * batches
    print(f"ceilings: {matmul / 1e12:.0f} TFLOP/s in bfloat16, {bandwidth / 1e12:.2f} TB/s")
    return operations / matmul, moved / bandwidth


def ceilings() -> tuple[float, float]:
    """Operations a second of a large product, and bytes a second of a large copy, read and written."""
    a, b = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16), torch.randn(2**29, device="cuda")
    return 2 * 8192**3 / seconds(lambda: a @ a), 2 * b.nbytes / seconds(b.clone)


def seconds(job: Callable[[], object], rounds: int = 10) -> float:
    synced(job)
    return median(timed(lambda: synced(job)) for _ in range(rounds))


def synced(job: Callable[[], object]) -> None:
    job()
    torch.cuda.synchronize()


@torch.no_grad()
def launched_or_replayed(policy: Policy) -> None:
    """The step of both decoders by the number of responses: where a graph stops paying decides `decoding.LAUNCHED`."""
    steps = GPT2Steps(policy.model, policy.precision)
    for rows in (25, 100, 400, 800, 1200, 1600, 2400):
        some = prompts(rows // RESPONSES).to("cuda")
        token, took = torch.ones(rows, dtype=torch.long, device="cuda"), []
        for kind in (Direct, Captured):
            reader = kind(policy, steps)
            reader.start(some, RESPONSES, TOKENS)
            reader.step(token)
            reader.start(some, RESPONSES, TOKENS)
            took.append(seconds_of_steps(reader, token))
        print(f"{rows} responses: a step launched {1e3 * took[0]:.2f} ms, replayed {1e3 * took[1]:.2f} ms")


def seconds_of_steps(reader: Direct | Captured, token: torch.Tensor) -> float:
    """Of one step, over the rest of a response: its keys have no more room."""
    synced(lambda: reader.step(token))
    return timed(lambda: synced(lambda: [reader.step(token) for _ in range(TOKENS - 2)])) / (TOKENS - 2)


def main(rounds: int) -> None:
    policy = large()
    stock = GPT2LMHeadModel(policy.model.config).to("cuda", torch.bfloat16).eval()
    stock.load_state_dict(policy.model.state_dict())
    arithmetic, memory = floor(policy)
    print(f"floor: {arithmetic:.3f} s of arithmetic, {memory:.3f} s of memory")
    for top_p in (1.0, 0.9):
        took = pairs((ours(policy, top_p), theirs(stock, top_p)), rounds)
        a, b = (median(side) for side in zip(*took, strict=True))
        low, high = quartiles([y / x for x, y in took])
        ratio, share = median(y / x for x, y in took), max(arithmetic, memory) / a
        print(
            f"GPT-2-large's shapes, 400 x 25 x 20, top-p {top_p}: sample {a:.2f} s, generate {b:.2f} s, ratio {ratio:.2f} "
            f"({low:.2f} to {high:.2f}, {rounds} pairs); {share:.0%} of the floor"
        )
    launched_or_replayed(policy)


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("no GPU")
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
