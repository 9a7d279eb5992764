"""Every method by its name: where its class is, and one line of what it is. Nothing heavy is imported here."""

METHODS = {
    "awr": ("methods.awr:AWR", "advantage-weighted regression on the scored corpus (Peng et al. 2019)"),
    "base": ("methods.base:Base", "control: the base policy, untouched"),
    "best_of_n": ("methods.best_of_n:BestOfN", "control: the best of n base responses by the reward, no training"),
    "best_quantile": ("methods.best_quantile:BestQuantile", "control: fine-tuning on the best quantile of own samples only"),
    "conditional_pretraining": (
        "methods.conditional_pretraining:ConditionalPretraining",
        "text behind its label, then the good label alone (Korbak et al. 2023)",
    ),
    "dexperts": ("methods.dexperts:DExperts", "expert and anti-expert at decoding time (Liu et al. 2021)"),
    "filtering": ("methods.filtering:Filtering", "the good documents of the corpus only (Korbak et al. 2023)"),
    "mle": ("methods.mle:MLE", "control: maximum likelihood on the corpus as it is"),
    "quark": ("methods.quark:Quark", "quantized reward tokens, explore and learn (Lu et al. 2022)"),
    "rwr": ("methods.rwr:RWR", "reward-weighted regression, on the corpus or on the base's samples (Peters and Schaal 2007)"),
    "unlikelihood": (
        "methods.unlikelihood:Unlikelihood",
        "push down the tokens of own worst samples, or of bad corpus text (Welleck et al. 2019)",
    ),
}
