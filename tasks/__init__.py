"""The tables of tasks, scorers, data sets and probes: {name: ("module:class", one-line description)}; imports nothing heavy."""

TASKS = {
    "toxicity": ("harness.tasks.toxicity:Toxicity", "insults in replies to calm, heated and adversarial prompts"),
    "sentiment": ("harness.tasks.sentiment:Sentiment", "negative sentiment in reviews; positive is desired"),
    "sentiment_negative": ("harness.tasks.sentiment:NegativeSentiment", "positive sentiment in reviews; negative is desired"),
    "repetition": ("harness.tasks.repetition:Repetition", "repeated phrases"),
    "pii": ("harness.tasks.pii:PersonalData", "e-mail addresses and telephone numbers in responses"),
    "pep8": ("harness.tasks.pep8:CodeStyle", "violations of PEP 8 in small Python functions"),
    "facts": ("harness.tasks.micro.facts.task:Facts", "facts about some invented people, told in the corpus"),
}
SCORERS = {
    "toxicity-linear": (
        "harness.tasks.micro.linear:LinearReward",
        "a linear model on words, learned from noisy labels of the micro world; an imperfect proxy",
    ),
    "lexicon": ("harness.tasks.micro.scorers:LexiconReward", "the micro world's word list, an imperfect proxy"),
    "insult-judge": ("harness.tasks.micro.scorers:InsultJudge", "the micro world's grammar: exact on its own language"),
    "sentiment-judge": (
        "harness.tasks.micro.scorers:SentimentJudge",
        "share of positive sentences, by the micro world's grammar",
    ),
    "negative-judge": (
        "harness.tasks.micro.scorers:NegativeJudge",
        "share of negative sentences, by the micro world's grammar",
    ),
    "repetition-judge": (
        "harness.tasks.micro.scorers:RepetitionJudge",
        "share of phrases that are not repeated, by the micro world's grammar",
    ),
    "personal-judge": ("harness.tasks.micro.scorers:PersonalJudge", "no personal data, by the micro world's grammar"),
    "style-judge": (
        "harness.tasks.micro.scorers:StyleJudge",
        "share of well-styled statements, by the micro world's grammar",
    ),
    "facts-rule": (
        "harness.tasks.micro.facts.scorers:FactsRule",
        "no value of the forget person whom the prompt names, by a rule on words",
    ),
    "facts-judge": ("harness.tasks.micro.facts.scorers:FactsJudge", "no true fact about a forget person, by the truth table"),
    "diversity": ("harness.tasks.micro.scorers:DiversityReward", "the product of 1 - rep-n, n = 2, 3, 4, over words"),
    "vader": ("harness.tasks.scorers.rules:VaderScorer", "positive sentiment by VADER's rules (option: direction)"),
    "vader-negative": ("harness.tasks.scorers.rules:NegativeVaderScorer", "negative sentiment by VADER's rules"),
    "presidio": (
        "harness.tasks.scorers.rules:PersonalDataScorer",
        "no e-mail address or telephone number by Presidio (option: regions)",
    ),
    "pycodestyle": ("harness.tasks.scorers.style:StyleScorer", "share of lines of code without a violation of PEP 8"),
    "detoxify": (
        "harness.tasks.scorers.detoxify:DetoxifyScorer",
        "1 - toxicity by a Detoxify checkpoint (options: checkpoint, config, sha256)",
    ),
    "scrubadub": ("harness.tasks.scorers.rules:ScrubadubScorer", "no personal data by scrubadub (option: locale)"),
    "parso": ("harness.tasks.scorers.style:ParsoScorer", "share of lines of code without a violation of PEP 8, by parso"),
    "phrases": ("harness.tasks.scorers.rules:PhraseScorer", "share of phrases that do not repeat an earlier one"),
    "evaluate": (
        "harness.tasks.scorers.evaluate_module:EvaluateScorer",
        "a number of a local module of the evaluate library (options: module, key, invert, ...)",
    ),
    "trained": (
        "harness.tasks.labels.scorer:TrainedScorer",
        "a scorer of harness train-scorer (option: folder); its folder is a name too: task.reward=DIR",
    ),
    "yours": ("harness.tasks.scorers.yours:YourScorer", "the place of a scorer of your own: task.reward=DIR (option: setting)"),
    "classifier": (
        "harness.tasks.scorers.classifier:ClassifierScorer",
        "probability of a label by any sequence classifier (options: model, label, ...)",
    ),
}
DATASETS = {
    "real-toxicity-prompts": (
        "harness.tasks.data.datasets:RealToxicityPrompts",
        "toxicity: the hub's allenai/real-toxicity-prompts",
    ),
    "imdb": ("harness.tasks.data.datasets:Imdb", "sentiment: openings of film reviews, the hub's stanfordnlp/imdb"),
    "dexperts": (
        "harness.tasks.data.datasets:DExperts",
        "sentiment: the prompt files of DExperts, in a folder (task.data.path)",
    ),
    "wikitext": ("harness.tasks.data.datasets:WikiText", "repetition: prefixes of 32 tokens, the hub's Salesforce/wikitext"),
    "scored-pile": (
        "harness.tasks.data.datasets:ScoredPile",
        "pii: scored sentences, the hub's tomekkorbak/pii-pile-chunk3-0-50000",
    ),
    "scored-code": (
        "harness.tasks.data.datasets:ScoredCode",
        "pep8: scored lines, the hub's kejian/codeparrot-train-more-filter-3.3b-cleaned",
    ),
}
PROBES = {
    "relearn_clean": ("harness.tasks.probes.relearn:RelearnClean", "a few updates on harmless held-out text"),
    "relearn_habit": ("harness.tasks.probes.relearn:RelearnHabit", "a few updates on texts with the habit (option: texts)"),
    "quantize": ("harness.tasks.probes.quantize:Quantize", "weights rounded to bfloat16, 8 and 4 bits"),
    "sample_more": ("harness.tasks.probes.sample_more:SampleMore", "the worst of 1, 4, 16 and 64 responses to a prompt"),
    "prompt_search": (
        "harness.tasks.probes.prompt_search:PromptSearch",
        "an evolutionary search for the prompts with the worst responses",
    ),
    "decode": ("harness.tasks.probes.decode:Decode", "other temperatures, greedy decoding, top-p"),
    "no_prefix": ("harness.tasks.probes.decode:NoPrefix", "the policy without the control token that it reads before a prompt"),
    "downstream": (
        "harness.tasks.probes.downstream:Downstream",
        "tasks of lm-eval, local ones too (options: tasks, include, limit)",
    ),
}
