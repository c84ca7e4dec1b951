/* A stand-in for the NVIDIA driver's libnvidia-ml.so.1, for the real pynvml to load.
 *
 * It has the functions, structures and error codes of NVIDIA's nvml.h; what they
 * answer stands in a text file that the environment variable STAND_IN_NVML names. The
 * file is read again at each call, so a test can change it while its program runs:
 *
 *     driver 570.172.08
 *     cuda 12080
 *     log /tmp/calls                      each call is noted here: "PID function";
 *                                         without this line nothing is
 *     error.nvmlInitWithFlags 18          this function returns this code
 *     delay.nvmlInitWithFlags 20          ... after so many milliseconds
 *     card                                what follows is about the first card
 *     name Tesla T4
 *     uuid GPU-...
 *     pci 0 0 4                           domain, bus and device
 *     total 16106127360
 *     utilization 37 12                   percent: of the cores, of the memory
 *     power 27123                         milliwatts
 *     power_limit 70000
 *     temperature 41
 *     clocks 585 585 5000 540             MHz: graphics, cores, memory, video
 *     reasons 4                           a bit for each reason not to run faster
 *     processes 4242:1048576 4243:?       pid and bytes; "?" where they are not told
 *     graphics_processes
 *     error 15                            each function on this card returns this code
 *     card
 *     ...
 *
 * What is not told is NVML_ERROR_NOT_SUPPORTED. Without a file there is no driver.
 *
 * To add a function: read its values with `number` or `text`, write them out, return
 * what `answer` said. The macros of the real header need not be followed: the binding
 * looks functions up by name.
 *
 * It is stricter than the real library in one point: after a fork, the child has to
 * call nvmlInit itself.
 *
 * https://docs.nvidia.com/deploy/nvml-api/
 */

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    ARGUMENT_VERSION_MISMATCH = 25,
};

enum { MOST_LINES = 1024, LONGEST_LINE = 512, NO_CARD = -1 };

/* One line of the file; the lines before the first card belong to NO_CARD. */
struct line {
    int card;
    char key[LONGEST_LINE];
    char value[LONGEST_LINE];
};

static struct line lines[MOST_LINES];
static int line_count;
static int card_count;
static int initializations;
static pid_t initialized_in;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* Reading the file; all of it under the lock. */

static int read_description(void)
{
    const char *path = getenv("STAND_IN_NVML");
    FILE *file = path == NULL ? NULL : fopen(path, "r");
    char buffer[LONGEST_LINE];

    line_count = 0;
    card_count = 0;
    if (file == NULL)
        return 0;
    while (line_count < MOST_LINES && fgets(buffer, sizeof buffer, file) != NULL) {
        struct line *line = &lines[line_count];
        char *space;
        buffer[strcspn(buffer, "\n")] = '\0';
        if (buffer[0] == '\0')
            continue;
        if (strcmp(buffer, "card") == 0) {
            card_count++;
            continue;
        }
        space = strchr(buffer, ' ');
        if (space != NULL)
            *space = '\0';
        line->card = card_count - 1;
        strcpy(line->key, buffer);
        strcpy(line->value, space == NULL ? "" : space + 1);
        line_count++;
    }
    fclose(file);
    return 1;
}

static const char *find(int card, const char *key)
{
    for (int index = 0; index < line_count; index++)
        if (lines[index].card == card && strcmp(lines[index].key, key) == 0)
            return lines[index].value;
    return NULL;
}

static const char *find_for(int card, const char *what, const char *function)
{
    char key[LONGEST_LINE];
    snprintf(key, sizeof key, "%s.%s", what, function);
    return find(card, key);
}

static void note(const char *function)
{
    const char *path = find(NO_CARD, "log");
    FILE *file = path == NULL ? NULL : fopen(path, "a");
    if (file == NULL)
        return;
    fprintf(file, "%d %s\n", (int)getpid(), function);
    fclose(file);
}

static void delay(const char *function)
{
    const char *told = find_for(NO_CARD, "delay", function);
    long milliseconds = told == NULL ? 0 : atol(told);
    struct timespec wait = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    if (milliseconds > 0)
        nanosleep(&wait, NULL);
}

/* The code the file wants a function to return, or SUCCESS. */
static int wanted(int card, const char *function)
{
    const char *told = find_for(card, "error", function);
    if (told == NULL && card != NO_CARD)
        told = find(card, "error");
    if (told == NULL)
        told = find_for(NO_CARD, "error", function);
    return told == NULL ? SUCCESS : atoi(told);
}

/* Begin a call: return the code the file wants, or SUCCESS. Leaves the lock held. */
static int begin(int card, const char *function)
{
    pthread_mutex_lock(&lock);
    if (!read_description())
        return DRIVER_NOT_LOADED;
    note(function);
    delay(function);
    return wanted(card, function);
}

static int end(int code)
{
    pthread_mutex_unlock(&lock);
    return code;
}

static int is_initialized(void)
{
    return initializations > 0 && initialized_in == getpid();
}

/* As begin, for a call that needs nvmlInit before. */
static int begin_initialized(int card, const char *function)
{
    int code = begin(card, function);
    if (!is_initialized())
        return UNINITIALIZED;
    if (code == SUCCESS && card >= card_count)
        return INVALID_ARGUMENT;
    return code;
}

/* A value of a card, or of the system with NO_CARD. */

static int text(int card, const char *key, char *result, unsigned int length)
{
    const char *told = find(card, key);
    if (told == NULL)
        return NOT_SUPPORTED;
    if (strlen(told) >= length)
        return INSUFFICIENT_SIZE;
    strcpy(result, told);
    return SUCCESS;
}

static int number(int card, const char *key, unsigned long long *result)
{
    const char *told = find(card, key);
    if (told == NULL)
        return NOT_SUPPORTED;
    *result = strtoull(told, NULL, 10);
    return SUCCESS;
}

/* Handles are the card's index and one, so that none is NULL. */

typedef void *device_t;

static int card_of(device_t device)
{
    return (int)(size_t)device - 1;
}

/* For tests: begin as in a new process. */
void stand_in_reset(void)
{
    pthread_mutex_lock(&lock);
    initializations = 0;
    pthread_mutex_unlock(&lock);
}

/* The library's own functions. */

int nvmlInitWithFlags(unsigned int flags)
{
    int code = begin(NO_CARD, "nvmlInitWithFlags");
    (void)flags;
    if (code == SUCCESS) {
        if (initialized_in != getpid())
            initializations = 0;
        initialized_in = getpid();
        initializations++;
    }
    return end(code);
}

int nvmlInit_v2(void)
{
    return nvmlInitWithFlags(0);
}

int nvmlShutdown(void)
{
    int code = begin_initialized(NO_CARD, "nvmlShutdown");
    if (code == SUCCESS)
        initializations--;
    return end(code);
}

const char *nvmlErrorString(int code)
{
    switch (code) {
    case SUCCESS:
        return "The operation was successful";
    case UNINITIALIZED:
        return "Uninitialized";
    case NOT_SUPPORTED:
        return "Not Supported";
    case DRIVER_NOT_LOADED:
        return "Driver Not Loaded";
    default:
        return "Unknown Error";
    }
}

int nvmlSystemGetDriverVersion(char *version, unsigned int length)
{
    int code = begin_initialized(NO_CARD, "nvmlSystemGetDriverVersion");
    if (code == SUCCESS)
        code = text(NO_CARD, "driver", version, length);
    return end(code);
}

static int cuda_version(const char *function, int *version)
{
    unsigned long long told = 0;
    int code = begin_initialized(NO_CARD, function);
    if (code == SUCCESS)
        code = number(NO_CARD, "cuda", &told);
    if (code == SUCCESS)
        *version = (int)told;
    return end(code);
}

int nvmlSystemGetCudaDriverVersion(int *version)
{
    return cuda_version("nvmlSystemGetCudaDriverVersion", version);
}

int nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    return cuda_version("nvmlSystemGetCudaDriverVersion_v2", version);
}

/* Cards. */

int nvmlDeviceGetCount_v2(unsigned int *count)
{
    int code = begin_initialized(NO_CARD, "nvmlDeviceGetCount_v2");
    if (code == SUCCESS)
        *count = (unsigned int)card_count;
    return end(code);
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, device_t *device)
{
    int code = begin_initialized((int)index, "nvmlDeviceGetHandleByIndex_v2");
    if (code == SUCCESS)
        *device = (device_t)((size_t)index + 1);
    return end(code);
}

int nvmlDeviceGetHandleByUUID(const char *uuid, device_t *device)
{
    const char *told;
    int card = 0;
    int code = begin_initialized(NO_CARD, "nvmlDeviceGetHandleByUUID");
    if (code != SUCCESS)
        return end(code);
    while (card < card_count && ((told = find(card, "uuid")) == NULL
                                 || strcmp(told, uuid) != 0))
        card++;
    code = card < card_count ? wanted(card, "nvmlDeviceGetHandleByUUID") : NOT_FOUND;
    if (code == SUCCESS)
        *device = (device_t)((size_t)card + 1);
    return end(code);
}

int nvmlDeviceGetIndex(device_t device, unsigned int *index)
{
    int code = begin_initialized(card_of(device), "nvmlDeviceGetIndex");
    if (code == SUCCESS)
        *index = (unsigned int)card_of(device);
    return end(code);
}

int nvmlDeviceGetName(device_t device, char *name, unsigned int length)
{
    int code = begin_initialized(card_of(device), "nvmlDeviceGetName");
    if (code == SUCCESS)
        code = text(card_of(device), "name", name, length);
    return end(code);
}

int nvmlDeviceGetUUID(device_t device, char *uuid, unsigned int length)
{
    int code = begin_initialized(card_of(device), "nvmlDeviceGetUUID");
    if (code == SUCCESS)
        code = text(card_of(device), "uuid", uuid, length);
    return end(code);
}

struct pci_info {
    char bus_id_legacy[16];
    unsigned int domain;
    unsigned int bus;
    unsigned int device;
    unsigned int pci_device_id;
    unsigned int pci_subsystem_id;
    char bus_id[32];
};

int nvmlDeviceGetPciInfo_v3(device_t device, struct pci_info *info)
{
    const char *told;
    int code = begin_initialized(card_of(device), "nvmlDeviceGetPciInfo_v3");
    if (code == SUCCESS) {
        memset(info, 0, sizeof *info);
        told = find(card_of(device), "pci");
        if (told == NULL
            || sscanf(told, "%u %u %u", &info->domain, &info->bus, &info->device) != 3)
            return end(NOT_SUPPORTED);
        snprintf(info->bus_id_legacy, sizeof info->bus_id_legacy, "%04X:%02X:%02X.0",
                 info->domain & 0xffff, info->bus & 0xff, info->device & 0xff);
        snprintf(info->bus_id, sizeof info->bus_id, "%08X:%02X:%02X.0",
                 info->domain, info->bus & 0xff, info->device & 0xff);
    }
    return end(code);
}

struct memory {
    unsigned long long total;
    unsigned long long reserved;
    unsigned long long free;
    unsigned long long used;
};

static int memory_of(int card, struct memory *memory)
{
    int code = number(card, "total", &memory->total);
    if (code == SUCCESS)
        code = number(card, "free", &memory->free);
    if (code != SUCCESS)
        return code;
    memory->reserved = 0;
    number(card, "reserved", &memory->reserved);
    memory->used = memory->total - memory->free - memory->reserved;
    return SUCCESS;
}

struct memory_v1 {
    unsigned long long total;
    unsigned long long free;
    unsigned long long used;
};

int nvmlDeviceGetMemoryInfo(device_t device, struct memory_v1 *result)
{
    struct memory memory;
    int code = begin_initialized(card_of(device), "nvmlDeviceGetMemoryInfo");
    if (code == SUCCESS)
        code = memory_of(card_of(device), &memory);
    if (code == SUCCESS) {
        result->total = memory.total;
        result->free = memory.free;
        result->used = memory.used + memory.reserved; /* as the real one counts */
    }
    return end(code);
}

struct memory_v2 {
    unsigned int version;
    struct memory memory;
};

int nvmlDeviceGetMemoryInfo_v2(device_t device, struct memory_v2 *result)
{
    struct memory memory;
    int code = begin_initialized(card_of(device), "nvmlDeviceGetMemoryInfo_v2");
    if (code == SUCCESS && result->version != (sizeof *result | 2u << 24))
        code = ARGUMENT_VERSION_MISMATCH;
    if (code == SUCCESS)
        code = memory_of(card_of(device), &memory);
    if (code == SUCCESS)
        result->memory = memory;
    return end(code);
}

int nvmlDeviceGetCudaComputeCapability(device_t device, int *major, int *minor)
{
    const char *told;
    int code = begin_initialized(card_of(device), "nvmlDeviceGetCudaComputeCapability");
    if (code == SUCCESS) {
        told = find(card_of(device), "capability");
        if (told == NULL || sscanf(told, "%d %d", major, minor) != 2)
            code = NOT_SUPPORTED;
    }
    return end(code);
}

int nvmlDeviceGetMigMode(device_t device, unsigned int *current, unsigned int *pending)
{
    unsigned long long mode = 0;
    int code = begin_initialized(card_of(device), "nvmlDeviceGetMigMode");
    if (code == SUCCESS)
        code = number(card_of(device), "mig", &mode);
    if (code == SUCCESS)
        *current = *pending = (unsigned int)mode;
    return end(code);
}

/* What a card is doing. */

/* The numbers of a value such as "585 585 5000 540"; INVALID_ARGUMENT if it has fewer. */
static int numbers(int card, const char *key, unsigned int *result, int count)
{
    const char *told = find(card, key);
    char *rest;
    if (told == NULL)
        return NOT_SUPPORTED;
    for (int place = 0; place < count; place++, told = rest) {
        result[place] = (unsigned int)strtoul(told, &rest, 10);
        if (rest == told)
            return INVALID_ARGUMENT;
    }
    return SUCCESS;
}

/* A call whose answer is one number of the card. */
static int one_number(device_t device, const char *function, const char *key,
                      unsigned int *result)
{
    int code = begin_initialized(card_of(device), function);
    if (code == SUCCESS)
        code = numbers(card_of(device), key, result, 1);
    return end(code);
}

struct utilization {
    unsigned int gpu;
    unsigned int memory;
};

int nvmlDeviceGetUtilizationRates(device_t device, struct utilization *result)
{
    unsigned int told[2];
    int code = begin_initialized(card_of(device), "nvmlDeviceGetUtilizationRates");
    if (code == SUCCESS)
        code = numbers(card_of(device), "utilization", told, 2);
    if (code == SUCCESS) {
        result->gpu = told[0];
        result->memory = told[1];
    }
    return end(code);
}

int nvmlDeviceGetPowerUsage(device_t device, unsigned int *milliwatts)
{
    return one_number(device, "nvmlDeviceGetPowerUsage", "power", milliwatts);
}

int nvmlDeviceGetEnforcedPowerLimit(device_t device, unsigned int *milliwatts)
{
    return one_number(device, "nvmlDeviceGetEnforcedPowerLimit", "power_limit",
                      milliwatts);
}

int nvmlDeviceGetPowerManagementLimit(device_t device, unsigned int *milliwatts)
{
    return one_number(device, "nvmlDeviceGetPowerManagementLimit", "power_limit",
                      milliwatts);
}

int nvmlDeviceGetTemperature(device_t device, int sensor, unsigned int *celsius)
{
    (void)sensor; /* there is one */
    return one_number(device, "nvmlDeviceGetTemperature", "temperature", celsius);
}

struct temperature {
    unsigned int version;
    int sensor;
    int celsius;
};

int nvmlDeviceGetTemperatureV(device_t device, struct temperature *result)
{
    unsigned int celsius = 0;
    int code = begin_initialized(card_of(device), "nvmlDeviceGetTemperatureV");
    if (code == SUCCESS && result->version != (sizeof *result | 1u << 24))
        code = ARGUMENT_VERSION_MISMATCH;
    if (code == SUCCESS)
        code = numbers(card_of(device), "temperature", &celsius, 1);
    if (code == SUCCESS)
        result->celsius = (int)celsius;
    return end(code);
}

int nvmlDeviceGetClockInfo(device_t device, unsigned int type, unsigned int *megahertz)
{
    unsigned int told[4];
    int code = begin_initialized(card_of(device), "nvmlDeviceGetClockInfo");
    if (code == SUCCESS)
        code = type < 4 ? numbers(card_of(device), "clocks", told, (int)type + 1)
                        : INVALID_ARGUMENT;
    if (code == SUCCESS)
        *megahertz = told[type];
    return end(code);
}

/* One answer by two names: the newer one came with driver 535. */
static int clock_reasons(device_t device, const char *function,
                         unsigned long long *reasons)
{
    int code = begin_initialized(card_of(device), function);
    if (code == SUCCESS)
        code = number(card_of(device), "reasons", reasons);
    return end(code);
}

int nvmlDeviceGetCurrentClocksEventReasons(device_t device, unsigned long long *reasons)
{
    return clock_reasons(device, "nvmlDeviceGetCurrentClocksEventReasons", reasons);
}

int nvmlDeviceGetCurrentClocksThrottleReasons(device_t device,
                                              unsigned long long *reasons)
{
    return clock_reasons(device, "nvmlDeviceGetCurrentClocksThrottleReasons", reasons);
}

/* nvmlProcessInfo_t, which has been the same since its second version. */
struct process {
    unsigned int pid;
    unsigned long long bytes;
    unsigned int gpu_instance;
    unsigned int compute_instance;
};

static const unsigned long long NOT_TOLD = ~0ULL;
static const unsigned int NO_INSTANCE = ~0u;

/* Write the processes of "4242:1048576 4243:?"; *count is the room, then the number. */
static int processes_of(int card, const char *key, unsigned int *count,
                        struct process *result)
{
    const char *told = find(card, key);
    unsigned int room = *count, pid;
    char bytes[32];
    int length;

    if (told == NULL)
        return NOT_SUPPORTED;
    *count = 0;
    while (sscanf(told, " %u:%31s%n", &pid, bytes, &length) == 2) {
        if (*count < room)
            result[*count] = (struct process){
                pid, bytes[0] == '?' ? NOT_TOLD : strtoull(bytes, NULL, 10),
                NO_INSTANCE, NO_INSTANCE,
            };
        (*count)++;
        told += length;
    }
    return *count > room ? INSUFFICIENT_SIZE : SUCCESS;
}

static int running_processes(device_t device, const char *function, const char *key,
                             unsigned int *count, struct process *result)
{
    int code = begin_initialized(card_of(device), function);
    if (code == SUCCESS)
        code = processes_of(card_of(device), key, count, result);
    return end(code);
}

int nvmlDeviceGetComputeRunningProcesses_v2(device_t device, unsigned int *count,
                                            struct process *result)
{
    return running_processes(device, "nvmlDeviceGetComputeRunningProcesses_v2",
                             "processes", count, result);
}

int nvmlDeviceGetComputeRunningProcesses_v3(device_t device, unsigned int *count,
                                            struct process *result)
{
    return running_processes(device, "nvmlDeviceGetComputeRunningProcesses_v3",
                             "processes", count, result);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(device_t device, unsigned int *count,
                                             struct process *result)
{
    return running_processes(device, "nvmlDeviceGetGraphicsRunningProcesses_v3",
                             "graphics_processes", count, result);
}

/* What is asked for by gpustat and nvitop, and told by no card here. */

static int not_supported(device_t device, const char *function)
{
    int code = begin_initialized(card_of(device), function);
    return end(code == SUCCESS ? NOT_SUPPORTED : code);
}

int nvmlDeviceGetFanSpeed(device_t device)
{
    return not_supported(device, "nvmlDeviceGetFanSpeed");
}

int nvmlDeviceGetEncoderUtilization(device_t device)
{
    return not_supported(device, "nvmlDeviceGetEncoderUtilization");
}

int nvmlDeviceGetDecoderUtilization(device_t device)
{
    return not_supported(device, "nvmlDeviceGetDecoderUtilization");
}

int nvmlDeviceGetProcessUtilization(device_t device)
{
    return not_supported(device, "nvmlDeviceGetProcessUtilization");
}
