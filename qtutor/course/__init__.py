"""The course around its notebooks: what each lesson is and needs, where things are kept, what instructors read.

Nothing is imported here: rooms far below the others ask `manifest` and `storage`.
"""
