"""Every method by its name: where its class is, and one line of what it is. Nothing heavy is imported here."""

METHODS = {  # by family; in this order a family's members take their shades and markers in figures
    "base": ("harness.methods.base:Base", "control: the base policy, untouched"),
    "mle": ("harness.methods.mle:MLE", "control: maximum likelihood on the corpus as it is"),
    "random_reward": ("harness.methods.random_reward:RandomReward", "control: REINFORCE on rewards that are noise"),
    "best_quantile": (
        "harness.methods.best_quantile:BestQuantile",
        "control: fine-tuning on the best quantile of own samples only",
    ),
    "best_of_n": ("harness.methods.best_of_n:BestOfN", "control: the best of n base responses by the reward, no training"),
    "dexperts": ("harness.methods.dexperts:DExperts", "expert and anti-expert at decoding time (Liu et al. 2021)"),
    "quark": ("harness.methods.quark:Quark", "quantized reward tokens, explore and learn (Lu et al. 2022)"),
    "conditional_pretraining": (
        "harness.methods.conditional_pretraining:ConditionalPretraining",
        "text behind its label, then the good label alone (Korbak et al. 2023)",
    ),
    "filtering": ("harness.methods.filtering:Filtering", "the good documents of the corpus only (Korbak et al. 2023)"),
    "rwr": (
        "harness.methods.rwr:RWR",
        "reward-weighted regression, on the corpus or on the base's samples (Peters and Schaal 2007)",
    ),
    "awr": ("harness.methods.awr:AWR", "advantage-weighted regression on the scored corpus (Peng et al. 2019)"),
    "ppo": (
        "harness.methods.ppo:PPO",
        "clipped policy gradients with a value network and a KL to the base (Schulman et al. 2017)",
    ),
    "reinforce": ("harness.methods.reinforce:Reinforce", "policy gradients with a KL to the base (Williams 1992)"),
    "rloo": ("harness.methods.rloo:RLOO", "REINFORCE leave-one-out, by TRL (Ahmadian et al. 2024)"),
    "grpo": ("harness.methods.grpo:GRPO", "group-relative advantages, by TRL (Shao et al. 2024)"),
    "gdc": (
        "harness.methods.gdc:GDC",
        "policy gradients toward the posterior, by one of four divergences (Khalifa et al. 2021, Go et al. 2023)",
    ),
    "dpo": ("harness.methods.dpo:DPO", "pairs of own samples, by TRL (Rafailov et al. 2023)"),
    "kto": ("harness.methods.kto:KTO", "own samples labelled good or bad, by TRL (Ethayarajh et al. 2024)"),
    "unlikelihood": (
        "harness.methods.unlikelihood:Unlikelihood",
        "push down the tokens of own worst samples, or of bad corpus text (Welleck et al. 2019)",
    ),
    "gradient_ascent": (
        "harness.methods.gradient_ascent:GradientAscent",
        "ascent on own worst samples, KL on the rest (Jang et al. 2022)",
    ),
    "npo": ("harness.methods.npo:NPO", "negative preference on own worst samples, KL on the rest (Zhang et al. 2024)"),
}
