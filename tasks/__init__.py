"""Every task by its name: where its class is, and one line of what it is. Nothing heavy is imported here."""

TASKS = {
    "toxicity": ("tasks.toxicity:Toxicity", "insults in replies to calm, heated and adversarial prompts"),
    "sentiment": ("tasks.sentiment:Sentiment", "negative sentiment in reviews; positive is wanted"),
    "sentiment_negative": ("tasks.sentiment:NegativeSentiment", "positive sentiment in reviews; negative is wanted"),
    "repetition": ("tasks.repetition:Repetition", "phrases that are said again"),
    "pii": ("tasks.pii:PersonalData", "e-mail addresses and telephone numbers given away"),
    "pep8": ("tasks.pep8:CodeStyle", "faults of style in small Python functions"),
}

SCORERS = {
    "lexicon": ("tasks.micro.scorers:LexiconReward", "the micro world's word list, an imperfect proxy"),
    "insult-judge": ("tasks.micro.scorers:InsultJudge", "the micro world's grammar: exact on its own language"),
    "sentiment-judge": ("tasks.micro.scorers:SentimentJudge", "share of positive sentences, by the micro world's grammar"),
    "negative-judge": ("tasks.micro.scorers:NegativeJudge", "share of negative sentences, by the micro world's grammar"),
    "repetition-judge": ("tasks.micro.scorers:RepetitionJudge", "share of phrases that are new, by the micro world's grammar"),
    "personal-judge": ("tasks.micro.scorers:PersonalJudge", "no personal data, by the micro world's grammar"),
    "style-judge": ("tasks.micro.scorers:StyleJudge", "share of tidy statements, by the micro world's grammar"),
    "diversity": ("tasks.micro.scorers:DiversityReward", "the product of 1 - rep-n, n = 2, 3, 4, over words"),
    "vader": ("tasks.scorers:VaderScorer", "positive sentiment by VADER's rules (option: direction)"),
    "vader-negative": ("tasks.scorers:NegativeVaderScorer", "negative sentiment by VADER's rules"),
    "presidio": ("tasks.scorers:PersonalDataScorer", "no e-mail address or telephone number by Presidio (option: regions)"),
    "pycodestyle": ("tasks.scorers:StyleScorer", "share of lines of code without a violation of PEP 8"),
    "detoxify": ("tasks.scorers:DetoxifyScorer", "1 - toxicity by a Detoxify checkpoint (options: checkpoint, config, sha256)"),
    "scrubadub": ("tasks.scorers:ScrubadubScorer", "no personal data by scrubadub (option: locale)"),
    "parso": ("tasks.scorers:ParsoScorer", "share of lines of code without a violation of PEP 8, by parso"),
    "phrases": ("tasks.scorers:PhraseScorer", "share of phrases that say something new"),
    "classifier": ("tasks.classifier:ClassifierScorer", "a label of any sequence classifier (options: model, label, ...)"),
}

DATASETS = {
    "real-toxicity-prompts": ("tasks.datasets:RealToxicityPrompts", "toxicity: the hub's allenai/real-toxicity-prompts"),
    "imdb": ("tasks.datasets:Imdb", "sentiment: openings of film reviews, the hub's stanfordnlp/imdb"),
    "dexperts": ("tasks.datasets:DExperts", "sentiment: the prompt files of DExperts, in a folder (task.data.path)"),
    "wikitext": ("tasks.datasets:WikiText", "repetition: prefixes of 32 tokens, the hub's Salesforce/wikitext"),
    "scored-pile": ("tasks.datasets:ScoredPile", "pii: scored sentences, the hub's tomekkorbak/pii-pile-chunk3-0-50000"),
    "scored-code": (
        "tasks.datasets:ScoredCode",
        "pep8: scored lines, the hub's kejian/codeparrot-train-more-filter-3.3b-cleaned",
    ),
}
