"""Every method by its name: where its class is, and one line of what it is. Nothing heavy is imported here."""

METHODS = {
    "base": ("methods.base:Base", "control: the base policy, untouched"),
    "best_of_n": ("methods.best_of_n:BestOfN", "control: the best of n base responses by the reward, no training"),
    "best_quantile": ("methods.best_quantile:BestQuantile", "control: fine-tuning on the best quantile of own samples only"),
    "quark": ("methods.quark:Quark", "quantized reward tokens, explore and learn (Lu et al. 2022)"),
    "unlikelihood": ("methods.unlikelihood:Unlikelihood", "push down the tokens of own worst samples (Welleck et al. 2019)"),
}
