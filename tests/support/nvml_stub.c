/* A stand-in for libnvidia-ml with the calls the collector makes.
 *
 * Every call reads a text file of `key value` lines again, so a test changes values live: the file
 * given to `nvml_stub_use`, or named by NVML_STUB_FILE. A value `!15` makes the call return error
 * 15; `~` makes it hang until the value is another one. A key that is not there is error 3, not
 * supported. Keys of a GPU start with its index, those of a MIG instance with both:
 * `0.temperature 64`, `0.mig1.name A30 MIG 1g.6gb`. Several numbers are separated by blanks.
 * With OLD_DRIVER defined it has only what a driver of 2020 had.
 */
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };
enum { TIMEOUT = 10, MAX_CALLS = 4096, KEY_SIZE = 64, LINE_SIZE = 512, MIG_BASE = 1000, MIG_MAX = 10 };
enum { HANG_POLL_MICROSECONDS = 2000, EVENT_POLL_MICROSECONDS = 5000, EVENT_POLLS = 4 };

typedef unsigned long long u64;
typedef struct { unsigned gpu, memory; } utilization_t;
typedef struct { u64 total, free, used; } memory_t;
typedef struct { unsigned version; u64 total, reserved, free, used; } memory_v2_t;
typedef struct { unsigned version, sensor; int celsius; } temperature_t;
typedef struct { unsigned pid; u64 used; unsigned gpu_instance, compute_instance; } process_t;
typedef union { double real; unsigned small; u64 large; } value_t;
typedef struct {
    unsigned id, scope;
    long long timestamp, latency;
    unsigned type;
    int result;
    value_t value;
} field_t;
typedef struct { void *device; u64 type, data; unsigned gpu_instance, compute_instance; } event_t;
typedef struct { void *device; u64 types, seen; } event_set_t;
typedef struct { char prefix[KEY_SIZE]; u64 taken; } gpm_sample_t;
typedef struct { unsigned id; int result; double value; char *names[3]; } gpm_metric_t;
typedef struct { unsigned version, count; gpm_sample_t *before, *after; gpm_metric_t metrics[]; } gpm_t;

static char values_path[1024];
static char calls[MAX_CALLS][KEY_SIZE];
static int call_count;
static pthread_mutex_t calls_lock = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void use_environment(void) {
    const char *path = getenv("NVML_STUB_FILE");
    if (path) snprintf(values_path, sizeof values_path, "%s", path);
}

void nvml_stub_use(const char *path) {
    snprintf(values_path, sizeof values_path, "%s", path);
    call_count = 0;
}

int nvml_stub_calls(const char *key) {
    int count = 0;
    pthread_mutex_lock(&calls_lock);
    for (int i = 0; i < call_count; i++) count += strcmp(calls[i], key) == 0;
    pthread_mutex_unlock(&calls_lock);
    return count;
}

static int peek(const char *key, char *value, size_t size) {
    char line[LINE_SIZE];
    size_t length = strlen(key);
    int result = NOT_SUPPORTED;
    FILE *file = fopen(values_path, "r");
    *value = 0;
    if (!file) return NOT_SUPPORTED;
    while (fgets(line, sizeof line, file)) {
        if (strncmp(line, key, length) || line[length] != ' ') continue;
        line[strcspn(line, "\n")] = 0;
        result = line[length + 1] == '!' ? atoi(line + length + 2) : SUCCESS;
        snprintf(value, size, "%s", line + length + 1);
    }
    fclose(file);
    return result;
}

static void count_call(const char *key) {
    pthread_mutex_lock(&calls_lock);
    if (call_count < MAX_CALLS) snprintf(calls[call_count++], KEY_SIZE, "%s", key);
    pthread_mutex_unlock(&calls_lock);
}

static int look_up(const char *key, char *value, size_t size) {
    int result;
    count_call(key);
    while ((result = peek(key, value, size)) == SUCCESS && *value == '~')
        usleep(HANG_POLL_MICROSECONDS);
    return result;
}

static void prefix_of(const void *device, char *prefix) {
    int number = (int)(size_t)device;
    if (number < MIG_BASE)
        snprintf(prefix, KEY_SIZE, "%d", number - 1);
    else
        snprintf(prefix, KEY_SIZE, "%d.mig%d", number / MIG_BASE - 1, number % MIG_MAX);
}

/* A MIG handle holds what `handle` was when it was given, and is invalid once that is another. */
static int is_stale(const void *device, const char *prefix) {
    char key[2 * KEY_SIZE], text[LINE_SIZE];
    int number = (int)(size_t)device;
    if (number < MIG_BASE) return 0;
    snprintf(key, sizeof key, "%s.handle", prefix);
    return peek(key, text, sizeof text) == SUCCESS && atoi(text) != number % MIG_BASE / MIG_MAX;
}

static int device_text(const void *device, const char *name, char *value, size_t size) {
    char key[2 * KEY_SIZE], prefix[KEY_SIZE];
    prefix_of(device, prefix);
    snprintf(key, sizeof key, "%s.%s", prefix, name);
    return is_stale(device, prefix) ? INVALID_ARGUMENT : look_up(key, value, size);
}

static int device_numbers(const void *device, const char *name, u64 *numbers, int count) {
    char text[LINE_SIZE];
    char *rest = text;
    int result = device_text(device, name, text, sizeof text);
    for (int i = 0; result == SUCCESS && i < count; i++) numbers[i] = strtoull(rest, &rest, 10);
    return result;
}

#define DEVICE_NUMBER(function, name, type)                  \
    int function(void *device, type *value) {                \
        u64 number;                                          \
        int result = device_numbers(device, name, &number, 1); \
        if (result == SUCCESS) *value = (type)number;        \
        return result;                                       \
    }

#define DEVICE_CHOICE(function, prefix)                                   \
    int function(void *device, unsigned which, unsigned *value) {         \
        char name[KEY_SIZE];                                              \
        u64 number;                                                       \
        snprintf(name, sizeof name, prefix "%u", which);                  \
        int result = device_numbers(device, name, &number, 1);            \
        if (result == SUCCESS) *value = (unsigned)number;                 \
        return result;                                                    \
    }

static int status(const char *key) {
    char text[LINE_SIZE];
    return look_up(key, text, sizeof text);
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; return status("init"); }
int nvmlShutdown(void) { return status("shutdown"); }
const char *nvmlErrorString(int code) { (void)code; return "an error of the stub"; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { return look_up("driver", text, size); }

int nvmlSystemGetProcessName(unsigned pid, char *text, unsigned size) {
    char key[KEY_SIZE];
    snprintf(key, sizeof key, "process.%u", pid);
    int result = look_up(key, text, size);
    return result == NOT_SUPPORTED ? NOT_FOUND : result;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    char text[LINE_SIZE];
    int result = look_up("count", text, sizeof text);
    if (result == SUCCESS) *count = (unsigned)atoi(text);
    return result;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    char text[LINE_SIZE];
    *device = (void *)((size_t)index + 1);
    return device_text(*device, "handle", text, sizeof text);
}

int nvmlDeviceGetName(void *d, char *text, unsigned size) {
    return device_text(d, "name", text, size);
}

int nvmlDeviceGetUUID(void *d, char *text, unsigned size) {
    return device_text(d, "uuid", text, size);
}

int nvmlDeviceGetUtilizationRates(void *device, utilization_t *rates) {
    u64 numbers[2];
    int result = device_numbers(device, "utilization", numbers, 2);
    if (result == SUCCESS) *rates = (utilization_t){(unsigned)numbers[0], (unsigned)numbers[1]};
    return result;
}

static int coding(void *device, const char *name, unsigned *percent, unsigned *period) {
    u64 number;
    int result = device_numbers(device, name, &number, 1);
    if (result == SUCCESS) { *percent = (unsigned)number; *period = 167000; }
    return result;
}

int nvmlDeviceGetEncoderUtilization(void *device, unsigned *percent, unsigned *period) {
    return coding(device, "encoder", percent, period);
}

int nvmlDeviceGetDecoderUtilization(void *device, unsigned *percent, unsigned *period) {
    return coding(device, "decoder", percent, period);
}

int nvmlDeviceGetMemoryInfo(void *device, memory_t *memory) {
    u64 n[3];
    int result = device_numbers(device, "memory_v1", n, 3);
    if (result == SUCCESS) *memory = (memory_t){n[0], n[2], n[1]};
    return result;
}

#ifndef OLD_DRIVER
int nvmlDeviceGetMemoryInfo_v2(void *device, memory_v2_t *memory) {
    u64 n[4];
    int result = device_numbers(device, "memory", n, 4);
    if (result == SUCCESS) *memory = (memory_v2_t){memory->version, n[0], n[3], n[2], n[1]};
    return result;
}
#endif

#ifndef OLD_DRIVER
int nvmlDeviceGetTemperatureV(void *device, temperature_t *temperature) {
    u64 number;
    int result = device_numbers(device, "temperature", &number, 1);
    if (result == SUCCESS) temperature->celsius = (int)number;
    return result;
}
#endif

int nvmlDeviceGetTemperature(void *device, unsigned sensor, unsigned *celsius) {
    u64 number;
    (void)sensor;
    int result = device_numbers(device, "temperature_old", &number, 1);
    if (result == SUCCESS) *celsius = (unsigned)number;
    return result;
}

DEVICE_CHOICE(nvmlDeviceGetTemperatureThreshold, "threshold")
DEVICE_CHOICE(nvmlDeviceGetClockInfo, "clock")
DEVICE_NUMBER(nvmlDeviceGetPowerUsage, "power", unsigned)
DEVICE_NUMBER(nvmlDeviceGetEnforcedPowerLimit, "power_limit", unsigned)
DEVICE_NUMBER(nvmlDeviceGetPowerManagementLimit, "power_limit_old", unsigned)
DEVICE_NUMBER(nvmlDeviceGetTotalEnergyConsumption, "energy", u64)
#ifndef OLD_DRIVER
DEVICE_NUMBER(nvmlDeviceGetCurrentClocksEventReasons, "reasons", u64)
#endif
DEVICE_NUMBER(nvmlDeviceGetCurrentClocksThrottleReasons, "reasons_old", u64)
DEVICE_NUMBER(nvmlDeviceGetPerformanceState, "state", int)
DEVICE_NUMBER(nvmlDeviceGetFanSpeed, "fan", unsigned)
DEVICE_NUMBER(nvmlDeviceGetCurrPcieLinkGeneration, "pcie_generation", unsigned)
DEVICE_NUMBER(nvmlDeviceGetMaxPcieLinkGeneration, "pcie_generation_max", unsigned)
DEVICE_NUMBER(nvmlDeviceGetCurrPcieLinkWidth, "pcie_lanes", unsigned)
DEVICE_NUMBER(nvmlDeviceGetMaxPcieLinkWidth, "pcie_lanes_max", unsigned)
DEVICE_NUMBER(nvmlDeviceGetPcieReplayCounter, "pcie_replays", unsigned)
DEVICE_CHOICE(nvmlDeviceGetPcieThroughput, "pcie_throughput")
DEVICE_CHOICE(nvmlDeviceGetNvLinkState, "nvlink")

/* `processes` holds `pid bytes` pairs; 0 bytes stand for "not available". */
static int running(void *device, const char *name, unsigned *count, process_t *processes) {
    char text[LINE_SIZE];
    char *rest = text;
    unsigned found = 0;
    int result = device_text(device, name, text, sizeof text);
    if (result != SUCCESS) return result;
    for (unsigned pid; (pid = (unsigned)strtoul(rest, &rest, 10)) != 0; found++) {
        u64 used = strtoull(rest, &rest, 10);
        if (processes && found < *count)
            processes[found] = (process_t){pid, used ? used : ULLONG_MAX, 0, 0};
    }
    result = found > 0 && (!processes || *count < found) ? INSUFFICIENT_SIZE : SUCCESS;
    *count = found;
    return result;
}

#ifndef OLD_DRIVER
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, process_t *processes) {
    return running(device, "processes", count, processes);
}
#endif

int nvmlDeviceGetComputeRunningProcesses_v2(void *device, unsigned *count, process_t *processes) {
    return running(device, "processes_old", count, processes);
}

int nvmlDeviceGetEccMode(void *device, unsigned *now, unsigned *pending) {
    u64 n[2];
    int result = device_numbers(device, "ecc_mode", n, 2);
    if (result == SUCCESS) { *now = (unsigned)n[0]; *pending = (unsigned)n[1]; }
    return result;
}

int nvmlDeviceGetTotalEccErrors(void *device, unsigned kind, unsigned since, u64 *count) {
    char name[KEY_SIZE];
    snprintf(name, sizeof name, "ecc_%s_%s", since ? "aggregate" : "volatile",
             kind ? "uncorrected" : "corrected");
    return device_numbers(device, name, count, 1);
}

/* `rows`: corrected, uncorrected, pending, failed. */
int nvmlDeviceGetRemappedRows(void *d, unsigned *a, unsigned *b, unsigned *c, unsigned *e) {
    u64 n[4];
    int result = device_numbers(d, "rows", n, 4);
    if (result == SUCCESS) {
        *a = (unsigned)n[0]; *b = (unsigned)n[1]; *c = (unsigned)n[2]; *e = (unsigned)n[3];
    }
    return result;
}

/* `field.82 u 55`: the value's type is u (unsigned), q (64 bits), d (double) or one unheard of. */
int nvmlDeviceGetFieldValues(void *device, int count, field_t *fields) {
    char text[LINE_SIZE], name[KEY_SIZE];
    int result = device_text(device, "fields", text, sizeof text);
    for (int i = 0; result == SUCCESS && i < count; i++) {
        const char *scope = fields[i].scope == UINT_MAX ? ".all" : "";
        snprintf(name, sizeof name, "field.%u%s", fields[i].id, scope);
        fields[i].result = device_text(device, name, text, sizeof text);
        if (fields[i].result != SUCCESS) continue;
        fields[i].type = *text == 'd' ? 0 : *text == 'u' ? 1 : *text == 'q' ? 3 : 99;
        if (*text == 'd') fields[i].value.real = strtod(text + 1, NULL);
        else if (*text == 'u') fields[i].value.small = (unsigned)strtoul(text + 1, NULL, 10);
        else fields[i].value.large = strtoull(text + 1, NULL, 10);
    }
    return result;
}

#ifndef OLD_DRIVER
int nvmlDeviceGetMigMode(void *device, unsigned *now, unsigned *pending) {
    u64 n[2];
    int result = device_numbers(device, "mig_mode", n, 2);
    if (result == SUCCESS) { *now = (unsigned)n[0]; *pending = (unsigned)n[1]; }
    return result;
}

DEVICE_NUMBER(nvmlDeviceGetMaxMigDeviceCount, "mig_max", unsigned)
DEVICE_NUMBER(nvmlDeviceGetGpuInstanceId, "gpu_instance", unsigned)
DEVICE_NUMBER(nvmlDeviceGetComputeInstanceId, "compute_instance", unsigned)

int nvmlDeviceGetMigDeviceHandleByIndex(void *device, unsigned index, void **mig) {
    char name[KEY_SIZE], text[LINE_SIZE];
    snprintf(name, sizeof name, "mig%u.handle", index);
    int result = device_text(device, name, text, sizeof text);
    *mig = (void *)((size_t)device * MIG_BASE + (size_t)(atoi(text) * MIG_MAX) + index);
    return result == NOT_SUPPORTED ? NOT_FOUND : result;
}

/* GPM: `gpm 1` = supported, `gpm_sample 1`, and one line for each metric, `gpm.2 37.5`; those of a
 * MIG instance by its GPU instance: `0.gi3.gpm.2 12`. */
typedef struct { unsigned version, supported; } gpm_support_t;

int nvmlGpmQueryDeviceSupport(void *device, gpm_support_t *support) {
    u64 number;
    int result = device_numbers(device, "gpm", &number, 1);
    if (result == SUCCESS) support->supported = (unsigned)number;
    return result;
}

int nvmlGpmSampleAlloc(gpm_sample_t **sample) {
    count_call("gpm_alloc");
    *sample = calloc(1, sizeof **sample);
    return SUCCESS;
}

int nvmlGpmSampleFree(gpm_sample_t *sample) {
    count_call("gpm_free");
    free(sample);
    return SUCCESS;
}

static int take_gpm(const char *prefix, gpm_sample_t *sample) {
    static u64 taken;
    char key[2 * KEY_SIZE], text[LINE_SIZE];
    snprintf(key, sizeof key, "%s.gpm_sample", prefix);
    int result = look_up(key, text, sizeof text);
    snprintf(sample->prefix, KEY_SIZE, "%s", prefix);
    sample->taken = __sync_add_and_fetch(&taken, 1);
    return result;
}

int nvmlGpmSampleGet(void *device, gpm_sample_t *sample) {
    char prefix[KEY_SIZE];
    prefix_of(device, prefix);
    return take_gpm(prefix, sample);
}

int nvmlGpmMigSampleGet(void *device, unsigned gpu_instance, gpm_sample_t *sample) {
    char prefix[KEY_SIZE];
    snprintf(prefix, sizeof prefix, "%d.gi%u", (int)(size_t)device - 1, gpu_instance);
    return take_gpm(prefix, sample);
}

int nvmlGpmMetricsGet(gpm_t *question) {
    char key[2 * KEY_SIZE], text[LINE_SIZE];
    if (question->version != 1 || question->before->taken == 0 ||
        question->before->taken >= question->after->taken)
        return INVALID_ARGUMENT;
    for (unsigned i = 0; i < question->count; i++) {
        gpm_metric_t *metric = &question->metrics[i];
        snprintf(key, sizeof key, "%s.gpm.%u", question->after->prefix, metric->id);
        metric->result = look_up(key, text, sizeof text);
        metric->value = strtod(text, NULL);
    }
    return SUCCESS;
}
#endif

/* `event 3 79 4294967295`: the third event is XID 79 of the whole GPU. */
int nvmlEventSetCreate(event_set_t **set) {
    count_call("event_set_create");
    *set = calloc(1, sizeof **set);
    return SUCCESS;
}

int nvmlEventSetFree(event_set_t *set) {
    count_call("event_set_free");
    free(set);
    return SUCCESS;
}

int nvmlDeviceRegisterEvents(void *device, u64 types, event_set_t *set) {
    u64 n[3];
    char text[LINE_SIZE];
    int result = device_text(device, "events", text, sizeof text);
    set->device = device;
    set->types = types;
    if (result == SUCCESS && device_numbers(device, "event", n, 3) == SUCCESS) set->seen = n[0];
    return result;
}

int nvmlEventSetWait_v2(event_set_t *set, event_t *event, unsigned milliseconds) {
    char key[2 * KEY_SIZE], prefix[KEY_SIZE], text[LINE_SIZE];
    (void)milliseconds; /* shorter, so that a test need not wait for a watch to end */
    prefix_of(set->device, prefix);
    for (int i = 0; i < EVENT_POLLS; i++) {
        u64 n[3];
        char *rest = text;
        snprintf(key, sizeof key, "%s.event", prefix);
        int result = peek(key, text, sizeof text);
        if (result != SUCCESS) return result;
        for (int j = 0; j < 3; j++) n[j] = strtoull(rest, &rest, 10);
        if (n[0] > set->seen) {
            set->seen = n[0];
            *event = (event_t){set->device, set->types, n[1], (unsigned)n[2], UINT_MAX};
            return SUCCESS;
        }
        usleep(EVENT_POLL_MICROSECONDS);
    }
    return TIMEOUT;
}
