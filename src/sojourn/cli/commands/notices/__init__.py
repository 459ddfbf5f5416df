"""Commands about being told: where events are sent, and what there is to look at."""
