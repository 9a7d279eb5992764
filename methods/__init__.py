"""Table of methods by name: import path of the class and a one-line description; imports nothing heavy."""

METHODS = {  # by family; this order sets the shades and markers of a family's members in figures
    "base": ("harness.methods.base:Base", "control: the base policy, unchanged"),
    "mle": ("harness.methods.mle:MLE", "control: maximum likelihood on the unfiltered corpus"),
    "random_reward": ("harness.methods.random_reward:RandomReward", "control: REINFORCE on random rewards"),
    "best_quantile": (
        "harness.methods.best_quantile:BestQuantile",
        "control: fine-tuning on the best quantile of the policy's samples",
    ),
    "oracle": ("harness.methods.oracle:Oracle", "control: the base policy trained anew without the habit in its corpus"),
    "best_of_n": ("harness.methods.best_of_n:BestOfN", "control: the base response of highest reward among n, no training"),
    "dexperts": ("harness.methods.dexperts:DExperts", "decoding with an expert and an anti-expert (Liu et al. 2021)"),
    "self_debias": (
        "harness.methods.self_debias:SelfDebias",
        "decoding against what a call for the habit makes likelier, no training (Schick et al. 2021)",
    ),
    "steering": (
        "harness.methods.steering:Steering",
        "a vector added to the activations of a layer, no training (Turner et al. 2023)",
    ),
    "quark": ("harness.methods.quark:Quark", "conditioning on quantized reward tokens (Lu et al. 2022)"),
    "conditional_pretraining": (
        "harness.methods.conditional_pretraining:ConditionalPretraining",
        "training on labelled text, decoding with the good label (Korbak et al. 2023)",
    ),
    "filtering": (
        "harness.methods.filtering:Filtering",
        "maximum likelihood on the good documents of the corpus (Korbak et al. 2023)",
    ),
    "rwr": (
        "harness.methods.rwr:RWR",
        "reward-weighted regression on the corpus or on base samples (Peters and Schaal 2007)",
    ),
    "awr": ("harness.methods.awr:AWR", "advantage-weighted regression on the scored corpus (Peng et al. 2019)"),
    "ppo": (
        "harness.methods.ppo:PPO",
        "clipped policy gradients with a value network and a KL penalty (Schulman et al. 2017)",
    ),
    "reinforce": ("harness.methods.reinforce:Reinforce", "policy gradients with a KL penalty (Williams 1992)"),
    "rloo": ("harness.methods.rloo:RLOO", "REINFORCE leave-one-out, by TRL (Ahmadian et al. 2024)"),
    "grpo": ("harness.methods.grpo:GRPO", "group-relative advantages, by TRL (Shao et al. 2024)"),
    "gdc": (
        "harness.methods.gdc:GDC",
        "policy gradients toward the posterior, by one of four divergences (Khalifa et al. 2021, Go et al. 2023)",
    ),
    "reinforce_pp": (
        "harness.methods.reinforce_pp:ReinforcePP",
        "policy gradients whitened over all tokens, without a value network (Hu et al. 2025)",
    ),
    "dpo": ("harness.methods.dpo:DPO", "preference pairs of the policy's samples, by TRL (Rafailov et al. 2023)"),
    "kto": ("harness.methods.kto:KTO", "the policy's samples labelled good or bad, by TRL (Ethayarajh et al. 2024)"),
    "unlikelihood": (
        "harness.methods.unlikelihood:Unlikelihood",
        "unlikelihood of the policy's worst samples, or of bad corpus text (Welleck et al. 2019)",
    ),
    "gradient_ascent": (
        "harness.methods.gradient_ascent:GradientAscent",
        "gradient ascent on the worst samples, KL on the rest (Jang et al. 2022)",
    ),
    "npo": ("harness.methods.npo:NPO", "negative preference on the worst samples, KL on the rest (Zhang et al. 2024)"),
    "simnpo": ("harness.methods.simnpo:SimNPO", "negative preference without a reference, KL on the rest (Fan et al. 2024)"),
    "rmu": (
        "harness.methods.rmu:RMU",
        "activations of the worst samples toward a random vector, the rest held (Li et al. 2024)",
    ),
    "task_vector": (
        "harness.methods.task_vector:TaskVector",
        "weights minus what a copy learns from bad corpus text (Ilharco et al. 2022)",
    ),
    "undo": ("harness.methods.undo:UNDO", "a suppressed policy distilled into a noised copy of itself (Lee et al. 2025)"),
}
