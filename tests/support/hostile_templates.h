// Chat templates of at most 256 KB, as a job may have one, that end or ended the process which renders or parses them.
#pragma once

#include <string>
#include <vector>

namespace luthier {

struct HostileTemplate {
  std::string name;
  std::string source;
};

inline std::string Repeated(const std::string& text, int times) {
  std::string all;
  for (int i = 0; i < times; ++i) all += text;
  return all;
}

// A list that 114,000 others are around. Each tag has few of them, and none is kept in a namespace.
inline std::string DeepList() {
  return "{%set x=1%}" + Repeated("{%set x=" + Repeated("[", 60) + "x" + Repeated("]", 60) + "%}", 1900);
}

// End it.
inline std::vector<HostileTemplate> HostileTemplates() {
  return {
      {"ATextOfTerabytes",
       "{% set ns = namespace(x='12345678') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"},
      {"AListOfTerabytes", "{%set x=[1]%}" + Repeated("{%set x=x+x%}", 40)},
      {"AValueThatIsTooDeepToPrint", DeepList() + "{{ x|tojson }}"},
  };
}

// Ended it, and are refused before they can by now.
inline std::vector<HostileTemplate> RefusedTemplates() {
  const std::string a_million_times = "{% for i in range(1000) %}{% for j in range(1000) %}";
  return {
      {"AValueThatIsTooDeepToFree",
       "{% set ns = namespace(x=[]) %}" + a_million_times + "{% set ns.x = [ns.x] %}{% endfor %}{% endfor %}"},
      {"AListThatIsLookedAtForHours",
       "{% set ns = namespace(x=[1]) %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}"},
      {"ASumThatIsTooLongToParse", "{{ " + Repeated("1+", 125'000) + "1 }}"},
      {"NegationsThatAreTooManyToParse", "{{ " + Repeated("not ", 62'000) + "1 }}"},
      {"BranchesThatAreTooManyToParse", "{% if 0 %}" + Repeated("{%elif 0%}", 25'000) + "{% endif %}"},
  };
}

// Uses all instructions that a rendering has, which takes seconds a row.
inline std::string EndlessTemplate() {
  return "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}";
}

}  // namespace luthier
