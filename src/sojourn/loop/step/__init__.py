"""What one event does to one place of the tree; `machine.py` finds the place and asks here.

replies     the model answered, or did not
calls       one tool request, from the reply that asks for it to its observation
waits       questions: how they are put, and to whom
decisions   their answers, and the end of patience
pauses      an agent stops by rule, or because it goes round in circles
budgets     what may still be spent, over the whole tree
days        a pool of the day has no room for a model call
ending      a step, a frame or a run is over
tree        one frame or one call of the tree, changed
"""
