# Completions of distant for bash: eval "$(distant completions bash)"
_distant() {
    local candidates
    candidates=$(command "${COMP_WORDS[0]}" complete bash "${COMP_LINE:0:COMP_POINT}" "$COMP_WORDBREAKS" 2>/dev/null)
    COMPREPLY=()
    [[ -n $candidates ]] && mapfile -t COMPREPLY <<<"$candidates"
    # What goes on after these is part of the same word.
    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[=/:,] ]] && compopt -o nospace
    return 0
}
complete -F _distant distant
