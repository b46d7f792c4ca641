"""A server under steady load while its registry changes a thousand times, and every answer checked afterwards.

versions   side networks of random weights, all different
churn      the changes: publishes, promotions, rollbacks, retirements, routes, refused versions
load       callers in a process of their own, which record every answer
http_calls the callers' requests over HTTP, where the server has TLS and tokens
trouble    callers that are killed, certificates and tokens that are renewed
victim     a caller that is killed
vitals     memory, threads and files of the server's process, and the generation it serves
oracle     what each version answers, computed from its artifact, away from any server
audit      checks every recorded answer
run        the whole soak, in rounds
"""
