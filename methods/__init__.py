"""Every method by its name: where its class is, and one line of what it is. Nothing heavy is imported here."""

METHODS = {
    "awr": ("harness.methods.awr:AWR", "advantage-weighted regression on the scored corpus (Peng et al. 2019)"),
    "base": ("harness.methods.base:Base", "control: the base policy, untouched"),
    "best_of_n": ("harness.methods.best_of_n:BestOfN", "control: the best of n base responses by the reward, no training"),
    "best_quantile": (
        "harness.methods.best_quantile:BestQuantile",
        "control: fine-tuning on the best quantile of own samples only",
    ),
    "conditional_pretraining": (
        "harness.methods.conditional_pretraining:ConditionalPretraining",
        "text behind its label, then the good label alone (Korbak et al. 2023)",
    ),
    "dexperts": ("harness.methods.dexperts:DExperts", "expert and anti-expert at decoding time (Liu et al. 2021)"),
    "dpo": ("harness.methods.dpo:DPO", "pairs of own samples, by TRL (Rafailov et al. 2023)"),
    "filtering": ("harness.methods.filtering:Filtering", "the good documents of the corpus only (Korbak et al. 2023)"),
    "gdc": (
        "harness.methods.gdc:GDC",
        "policy gradients toward the posterior, by one of four divergences (Khalifa et al. 2021, Go et al. 2023)",
    ),
    "gradient_ascent": (
        "harness.methods.gradient_ascent:GradientAscent",
        "ascent on own worst samples, KL on the rest (Jang et al. 2022)",
    ),
    "grpo": ("harness.methods.grpo:GRPO", "group-relative advantages, by TRL (Shao et al. 2024)"),
    "kto": ("harness.methods.kto:KTO", "own samples labelled good or bad, by TRL (Ethayarajh et al. 2024)"),
    "mle": ("harness.methods.mle:MLE", "control: maximum likelihood on the corpus as it is"),
    "npo": ("harness.methods.npo:NPO", "negative preference on own worst samples, KL on the rest (Zhang et al. 2024)"),
    "ppo": (
        "harness.methods.ppo:PPO",
        "clipped policy gradients with a value network and a KL to the base (Schulman et al. 2017)",
    ),
    "quark": ("harness.methods.quark:Quark", "quantized reward tokens, explore and learn (Lu et al. 2022)"),
    "random_reward": ("harness.methods.random_reward:RandomReward", "control: REINFORCE on rewards that are noise"),
    "reinforce": ("harness.methods.reinforce:Reinforce", "policy gradients with a KL to the base (Williams 1992)"),
    "rloo": ("harness.methods.rloo:RLOO", "REINFORCE leave-one-out, by TRL (Ahmadian et al. 2024)"),
    "rwr": (
        "harness.methods.rwr:RWR",
        "reward-weighted regression, on the corpus or on the base's samples (Peters and Schaal 2007)",
    ),
    "unlikelihood": (
        "harness.methods.unlikelihood:Unlikelihood",
        "push down the tokens of own worst samples, or of bad corpus text (Welleck et al. 2019)",
    ),
}
FAMILIES = {  # every method in one; methods of a family share a hue in figures
    "controls": ("base", "mle", "random_reward", "best_quantile"),
    "at decoding": ("best_of_n", "dexperts"),
    "likelihood, weighted or conditioned": ("quark", "conditional_pretraining", "filtering", "rwr", "awr"),
    "policy gradients": ("ppo", "reinforce", "rloo", "grpo", "gdc"),
    "preferences": ("dpo", "kto"),
    "pushing bad text down": ("unlikelihood", "gradient_ascent", "npo"),
}
