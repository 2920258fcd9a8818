"""The phantom: a drawn cohort of chest radiographs and reports whose truth is known.

One ``Case`` (who, how exposed, what is wrong) is the single source of both the picture and the report, so that the two
agree unless a mismatch is planted on purpose.
"""
