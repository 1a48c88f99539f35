"""Exercises: a question's check, hints and solution, and the learner's progress.

    from qtutor.exercises import affine_mapping as exercises
    exercises.predict_code.check(answer)

`exercise` holds the mechanism, `progress` what survives a restart, every other module the exercises
of one lesson.
"""
