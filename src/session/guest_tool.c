#include "session/guest_tool.h"

#include <string.h>

#include "session/guest_home.h"

static json_t *words_json(const struct provider_words *words) {
    json_t *array = json_array();
    const char *word;
    for (unsigned i = 0; (word = provider_word(words, i)); i++)
        json_array_append_new(array, json_string(word));
    return array;
}

/* Tools take a machine without a display for one without a browser. */
static json_t *environment_json(const struct provider *p, enum vm_type type) {
    json_t *env = type == VM_TYPE_BROWSER ? json_pack("{s:s}", "DISPLAY", ":0") : json_object();
    const char *word;
    for (unsigned i = 0; (word = provider_word(&p->environment, i)); i++) {
        char name[PROVIDER_WORDS_TEXT];
        size_t len = strcspn(word, "=");
        memcpy(name, word, len);
        name[len] = '\0';
        json_object_set_new(env, name, json_string(word + len + 1));
    }
    return env;
}

json_t *guest_tool_request(const struct provider *provider, const struct provider_words *command, enum vm_type type) {
    return json_pack("{s:s, s:o, s:o, s:s}", "op", "exec", "argv", words_json(command), "env",
                     environment_json(provider, type), "user", guest_home(type).user);
}

bool guest_tool_ended_well(const json_t *ok) {
    const json_t *status = ok ? json_object_get(ok, "status") : NULL;
    return json_is_integer(status) && json_integer_value(status) == 0;
}
