"""When does curation pay? Methods compared over pools, budgets, shares of wrong pairs, scorers and starts.

`design` says what is compared, `pools` draws what is chosen from, `scorers` embeds it, `choices` chooses, `training`
trains and judges, `bench` runs it all, `contrasts` tells what is gained, and `advice` applies that to a cohort.
"""
