"""The screens: `views` decides what is shown, `layout` what fits, `terminal` and `live` draw. Nobody is asked
anything.
"""
