"""Ways of adapting a backbone to a task, compared on the same data: `sidecast compare`.

`methods` has the table of methods, `scorers` their models, `runs` trains one of them with one seed, `comparison` goes
through all, and `tables` and `pareto` show the results. PEFT is imported by the methods that come from it, and nowhere
else.
"""
