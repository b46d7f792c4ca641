"""Ways of adapting a backbone to a task, other than a side network: what is trained, and what answers.

`methods` has the table of methods, `source` the encoder that they start from, `scorers` their models, `trained` a model
that was trained before. PEFT is imported by the methods that come from it, and nowhere else.
"""
