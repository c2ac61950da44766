"""The herd: thousands of batchers whose server fails for minutes and comes back, as a model of events.

`Server` is the server, `model` has the clients, `policies` the rules that they follow, `picture` draws a run. The tests
compare the model with real batchers on trio's mock clock.
"""
