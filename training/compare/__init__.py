"""The methods of `training.methods` and side networks, compared on the same data: `sidecast compare`.

`fitting` trains a method with one seed, `side_run` a side network, `comparison` goes through all, and `tables` and
`pareto` show the results.
"""
