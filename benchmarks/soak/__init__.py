"""A server under steady load while its registry changes a thousand times, and every answer checked afterwards.

versions   side networks of random weights, each its own
churn      the changes: publishes, promotions, rollbacks, retirements, routes, refused versions
load       callers in a process of their own, who write down what they were told
vitals     what the server's process holds, and which generation it says that it serves
oracle     what each version answers, computed from its artifact, away from any server
audit      who was told something wrong
run        all of it together
"""
