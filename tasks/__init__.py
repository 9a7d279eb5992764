"""Every task by its name: where its class is, and one line of what it is. Nothing heavy is imported here."""

TASKS = {
    "toxicity": ("tasks.toxicity:Toxicity", "insults in replies to calm, heated and adversarial prompts"),
}

SCORERS = {
    "lexicon": ("tasks.micro.scorers:LexiconReward", "the micro world's word list, an imperfect proxy"),
    "insult-judge": ("tasks.micro.scorers:InsultJudge", "the micro world's grammar: exact on its own language"),
    "detoxify": ("tasks.scorers:DetoxifyScorer", "1 - toxicity by a Detoxify checkpoint (options: checkpoint, config, sha256)"),
}
